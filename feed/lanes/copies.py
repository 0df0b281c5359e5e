"""Copies of a dataset for lanes that share a worker, as the workers of DataLoader have one each."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import threading
from collections.abc import Iterator
from typing import Any

from loopwise.errors import InputError

from ..unpicklable import culprit

_LOCK, _RLOCK = type(threading.Lock()), type(threading.RLock())
_REDUCERS: dict[type, Any] = {
    _LOCK: lambda lock: (threading.Lock, ()),
    _RLOCK: lambda lock: (threading.RLock, ()),
    threading.Condition: lambda condition: (threading.Condition, (condition._lock,)),
}
"""How to copy what ``deepcopy`` refuses or, as a condition, copies wrongly: with locks of its own, which nobody holds."""


def copied(dataset: Any) -> Any:
    """Return a deep copy of a dataset; locks in it are new.

    Raises:
        InputError: the dataset has something that cannot be copied; the message names the attribute.
    """
    with _locks_can_be_copied():
        try:
            return copy.deepcopy(dataset)
        except Exception as error:
            attribute, part = culprit("dataset", dataset, copy.deepcopy)
            raise InputError(
                f"{attribute} of type {type(part).__name__}, which cannot be copied ({error})",
                "a dataset that can be copied: each of the num_workers random streams needs a dataset of its own, and there "
                "are fewer workers",
                "it holds an open file, a connection or a generator",
                f"leave out workers=, open {attribute} when it is first used, or give the dataset a __deepcopy__",
            ) from error


@contextlib.contextmanager
def _locks_can_be_copied() -> Iterator[None]:
    """Let ``deepcopy`` copy locks; this process is a worker, so that no other thread copies meanwhile."""
    own = {kind: reduce for kind, reduce in _REDUCERS.items() if kind not in copyreg.dispatch_table}
    copyreg.dispatch_table.update(own)
    try:
        yield
    finally:
        for kind in own:
            del copyreg.dispatch_table[kind]
