"""Delay of interrupts while files and threads are opened or closed."""

from __future__ import annotations

import functools
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals whose handlers raise an exception at any place of the main thread."""


class Delayed:
    """Context in which the first interrupt takes effect at the end, and any further one at once.

    Only handlers written in Python are delayed, and only on the main thread, where Python calls them: a signal without a
    handler ends the process as before.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._waiting: list[tuple[int, FrameType | None]] = []
        self._active = False

    def __enter__(self) -> Delayed:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if callable(handler := signal.getsignal(number)):
                    self._before[number] = handler
                    signal.signal(number, functools.partial(self._note, handler))
        self._active = True
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        for number, frame in self._waiting:
            self._before[number](number, frame)

    def _restore(self) -> None:
        self._active = False  # from here on a signal has its effect, whichever handler is registered
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, handler: Any, number: int, frame: FrameType | None) -> None:
        if not self._active or self._waiting:
            self._waiting.clear()
            self._restore()  # the exception of the handler may skip the end of the context
            handler(number, frame)
        else:
            self._waiting.append((number, frame))
