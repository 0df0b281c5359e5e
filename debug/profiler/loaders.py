"""The time that training waits for a ``torch.utils.data.DataLoader``, without a word in the loop.

While someone listens, the methods by which it gives an iterator, which may start workers, and by which all its
iterators give a batch are replaced by ones that look at the clock before and after; then they are put back.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Protocol

from torch.utils.data.dataloader import DataLoader, _BaseDataLoaderIter


class Listener(Protocol):
    def loads(self) -> float | None: ...

    def loaded(self, start: float, workers: int, arrived: bool = True) -> None: ...


_METHODS = ((DataLoader, "__iter__", "num_workers"), (_BaseDataLoaderIter, "__next__", "_num_workers"))
"""Class, method, and the attribute that has the number of workers."""
_lock = threading.Lock()
_listeners: tuple[Listener, ...] = ()
_originals: dict[str, Any] = {}


def listen(listener: Listener) -> None:
    """Tell ``listener`` of each batch from now on."""
    global _listeners
    with _lock:
        _listeners = (*_listeners, listener)
        for owner, name, workers in _METHODS:
            if name not in _originals:
                _originals[name] = getattr(owner, name)
                setattr(owner, name, _timed(_originals[name], workers))


def leave(listener: Listener) -> None:
    """Tell it no more."""
    global _listeners
    with _lock:
        _listeners = tuple(each for each in _listeners if each is not listener)
        for owner, name, _ in () if _listeners else _METHODS:
            replaced = getattr(getattr(owner, name), "__wrapped__", None)
            if replaced is not None and replaced is _originals.get(name):  # nobody else replaced it since
                setattr(owner, name, _originals.pop(name))


def _timed(original: Any, workers: str) -> Any:
    @functools.wraps(original)
    def timed(self: Any) -> Any:
        told = [(each, each.loads()) for each in _listeners]
        arrived = False
        try:
            found = original(self)
            arrived = isinstance(self, _BaseDataLoaderIter)
            return found
        finally:
            for each, start in told:
                if start is not None:
                    each.loaded(start, getattr(self, workers), arrived)

    return timed
