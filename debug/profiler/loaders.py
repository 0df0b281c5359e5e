"""Timing of the batches that training waits for, without a call in the user's loop.

``subscribe`` replaces two methods for the whole process: ``DataLoader.__iter__``, which may start workers, and
``__next__`` of the base class of its iterators.  It cannot be done for one loader alone, as a ``Watch`` is not told
which loader the training reads, and Python looks both methods up on the class.  The replacements read the clock,
call the original, and count only calls on the thread of a subscriber's training.  The originals are put back when
the last subscriber leaves.
"""

from __future__ import annotations

import functools
import threading
import weakref
from typing import Any

from torch.utils.data import DataLoader

from .. import torch_internals
from .phases import Phases

GLOBAL_CHANGE = (
    "While a Watch with a profile is open, torch.utils.data.DataLoader.__iter__ and the __next__ of its iterators "
    "are replaced by timed ones in the whole process; closing the Watch puts the originals back."
)
"""Side effect outside of the Watch's own objects, for the documents."""


class EpochLengths:
    """Observer of how many batches the epochs of the loaders have that this thread iterates; it sees them only while a
    profile is subscribed.

    Attributes:
        is_one_batch: whether the last epoch that was begun has a single batch.
    """

    def __init__(self) -> None:
        self.is_one_batch = False
        self._thread = threading.get_ident()
        _observers.add(self)

    def begun(self, loader: DataLoader[Any]) -> None:
        """Note the number of batches of a loader whose epoch begins."""
        if threading.get_ident() == self._thread:
            try:
                self.is_one_batch = len(loader) == 1
            except Exception:  # it has no length, or the user's sampler fails
                self.is_one_batch = False


_observers: weakref.WeakSet[EpochLengths] = weakref.WeakSet()
_lock = threading.Lock()
_subscribers: tuple[Phases, ...] = ()
_originals: dict[str, Any] = {}


def _methods() -> tuple[tuple[type, str], ...]:
    return (DataLoader, "__iter__"), (torch_internals.loader_iterator(), "__next__")


def subscribe(phases: Phases) -> None:
    """Report each batch to ``phases`` from now on."""
    global _subscribers
    with _lock:
        _subscribers = (*_subscribers, phases)
        for owner, name in _methods():
            if name not in _originals:
                _originals[name] = getattr(owner, name)
                setattr(owner, name, _timed(_originals[name]))


def unsubscribe(phases: Phases) -> None:
    """Stop telling ``phases``; the last one to leave puts torch's methods back."""
    global _subscribers
    with _lock:
        _subscribers = tuple(other for other in _subscribers if other is not phases)
        for owner, name in () if _subscribers else _methods():
            replaced = getattr(getattr(owner, name), "__wrapped__", None)
            if replaced is not None and replaced is _originals.get(
                name
            ):  # no other code has replaced the method since
                setattr(owner, name, _originals.pop(name))


def _timed(original: Any) -> Any:
    @functools.wraps(original)
    def timed(self: Any) -> Any:
        starts = [(subscriber, subscriber.loads()) for subscriber in _subscribers]
        gives_batch, arrived = not isinstance(self, DataLoader), False
        for observer in () if gives_batch else list(_observers):
            observer.begun(self)
        try:
            result = original(self)
            arrived = gives_batch
            return result
        finally:
            for subscriber, start in starts:
                if start is not None:
                    workers = torch_internals.loader_workers(self) if gives_batch else self.num_workers
                    subscriber.loaded(start, workers, arrived)

    return timed
