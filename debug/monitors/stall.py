"""Notices that no step has come for long, while none comes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from loopwise.errors import InputError

from ..rules import RULES, Finding
from .monitor import Scalars

SECONDS = 1800.0
"""Without a step: longer than any evaluation or checkpoint that training can afford often."""


class Stalled:
    """A companion of a ``Watch`` with a thread that waits for the time to be over.

    Args:
        tell: called on that thread with a `Finding`, once for each time that training stands still.
        seconds: between two steps.
        clock: gives seconds.
        wait: waits for an event so many seconds, and says whether it came.

    Raises:
        InputError: ``seconds`` is no time.
    """

    def __init__(
        self,
        tell: Callable[[Finding], None],
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        if not seconds > 0:
            raise InputError(
                f"seconds={seconds!r}", "a time above 0", "a switch", "leave it out for the default"
            )
        self._tell, self._seconds, self._clock, self._wait = tell, seconds, clock, wait
        self._end = threading.Event()
        self._last = clock(), 0, "train"
        self._thread = threading.Thread(target=self._watch, name="loopwise-debug-stalled", daemon=True)
        self._thread.start()

    def begin(self, step: int, mode: str) -> None:
        self._last = self._clock(), step, mode

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        """The next one begins at once."""

    def findings(self) -> list[Finding]:
        return []  # they were told

    def close(self) -> None:
        self._end.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        told = -1.0
        while True:
            begun, step, mode = self._last
            rest = begun + self._seconds - self._clock()
            if rest <= 0 and begun != told:
                told = begun
                self._tell(self._finding(step, mode))
            if self._wait(self._end, rest if rest > 0 else self._seconds):
                return

    def _finding(self, step: int, mode: str) -> Finding:
        rule = RULES["stalled_training"]
        what = f"no step has come for {self._seconds:.0f} seconds since step {step} began"
        return Finding("stalled_training", rule.severity, step, mode, what, (), {}, rule.advice)
