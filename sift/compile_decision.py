"""Choice between a plain and a compiled scoring pass, by measurement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

AFTER = 30.0
"""Seconds of plain scoring before compiling is tried: about the time that compiling takes, so that trying it can at
most double the cost of scoring, however short the training turns out to be."""
WARM_UP, TIMED = 2, 5
"""Number of compiled calls before timing begins (they compile), and number of timed calls."""


class CompileDecision:
    """Choice of the faster one of a plain and a compiled function, after ``AFTER`` seconds of the plain one.

    Args:
        plain: the plain function.
        compile: function that compiles ``plain``; called once, before the first compiled call.
    """

    def __init__(self, plain: Callable[..., Any], compile: Callable[[Callable[..., Any]], Any]) -> None:
        self.plain, self.compile = plain, compile
        self.run: Callable[..., Any] = plain
        self.decided = False
        self._spent = 0.0
        self._times: list[float] = []
        self._plain_time = 0.0

    def add_time(self, seconds: float, samples: int) -> None:
        """Count a call of ``run`` for ``samples`` samples that took ``seconds``."""
        if self.decided:
            return
        self._times.append(seconds / samples)
        if self.run is self.plain:
            self._spent += seconds
            if self._spent >= AFTER:
                self._plain_time = float(np.median(self._times[-TIMED:]))
                self.run, self._times = self.compile(self.plain), []
        elif len(self._times) == WARM_UP + TIMED:
            self.decided = True
            if np.median(self._times[WARM_UP:]) >= self._plain_time:
                self.run = self.plain
