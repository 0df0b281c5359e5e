"""The time that training waits for a ``torch.utils.data.DataLoader``, without a word in the loop.

While someone listens, the method by which all its iterators give a batch is replaced by one that looks at
the clock before and after; then it is put back.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Protocol

from torch.utils.data.dataloader import _BaseDataLoaderIter


class Listener(Protocol):
    def loads(self) -> float | None: ...

    def loaded(self, start: float, workers: int) -> None: ...


_lock = threading.Lock()
_listeners: tuple[Listener, ...] = ()
_original: Any = None


def listen(listener: Listener) -> None:
    """Tell ``listener`` of each batch from now on."""
    global _listeners, _original
    with _lock:
        _listeners = (*_listeners, listener)
        if _original is None:
            _original = _BaseDataLoaderIter.__next__
            _BaseDataLoaderIter.__next__ = _timed(_original)  # type: ignore[method-assign]


def leave(listener: Listener) -> None:
    """Tell it no more."""
    global _listeners, _original
    with _lock:
        _listeners = tuple(each for each in _listeners if each is not listener)
        replaced = getattr(_BaseDataLoaderIter.__next__, "__wrapped__", None)
        if (
            not _listeners and _original is not None and replaced is _original
        ):  # nobody else replaced it since
            _BaseDataLoaderIter.__next__ = _original  # type: ignore[method-assign, assignment]
            _original = None


def _timed(original: Any) -> Any:
    @functools.wraps(original)
    def __next__(self: Any) -> Any:
        told = [(each, each.loads()) for each in _listeners]
        try:
            return original(self)
        finally:
            for each, start in told:
                if start is not None:
                    each.loaded(start, self._num_workers)

    return __next__
