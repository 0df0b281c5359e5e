"""Whether a compiled scoring pass pays, decided by measurement."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

AFTER = 30.0
"""Seconds of plain scoring before compiling is tried: about what compiling costs, so that trying it can
at most double what scoring costs, however short the training turns out to be."""
WARM, CALLS = 2, 5
"""Compiled passes that are not timed (they compile), and those that are."""


class WhenItPays:
    """Holds the faster of a plain and a compiled function, once ``AFTER`` seconds were spent on the plain one.

    Args:
        plain: the function as it is.
        compile: makes the compiled one; called once, when it is first to be tried.
    """

    def __init__(self, plain: Callable[..., Any], compile: Callable[[Callable[..., Any]], Any]) -> None:
        self.plain, self.compile = plain, compile
        self.run: Callable[..., Any] = plain
        self.decided = False
        self._spent = 0.0
        self._times: list[float] = []
        self._plain_time = 0.0

    def note(self, seconds: float, size: int) -> None:
        """A call of ``run`` for ``size`` samples took ``seconds``."""
        if self.decided:
            return
        self._times.append(seconds / size)
        if self.run is self.plain:
            self._spent += seconds
            if self._spent >= AFTER:
                self._plain_time = statistics.median(self._times[-CALLS:])
                self.run, self._times = self.compile(self.plain), []
        elif len(self._times) == WARM + CALLS:
            self.decided = True
            if statistics.median(self._times[WARM:]) >= self._plain_time:
                self.run = self.plain
