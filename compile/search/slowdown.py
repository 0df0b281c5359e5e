"""Whether the compiled step is still the faster one, by the clock of real steps."""

from __future__ import annotations

import statistics

WINDOW, TURNS, REST = 20, 5, 200
"""Compiled steps that are looked at together; steps of each form in a contest; steps between two contests."""
CLEARLY = 0.95
"""The eager step must take less than this share of the compiled one's time to be called faster."""


class Pace:
    """Holds a contest of real steps when the compiled ones get slower than the eager ones were.

    Both forms train the same, so a contest costs nothing but the slower form's time.

    Args:
        eager: seconds of the eager step's forward and backward when they were measured.
    """

    def __init__(self, eager: float) -> None:
        self.eager = eager
        self.verdict = ""
        """Why the eager step is to be preferred, once that is known."""
        self._recent: list[float] = []
        self._contest: dict[bool, list[float]] | None = None
        self._rest = 0

    @property
    def eager_turn(self) -> bool:
        """Whether the next step is to be an eager one, for the contest."""
        return self._contest is not None and len(self._contest[True]) <= len(self._contest[False]) < TURNS

    def note(self, seconds: float, eager: bool) -> None:
        """A step's forward and backward took ``seconds``."""
        if self._contest is not None:
            self._contest[eager].append(seconds)
            if len(self._contest[False]) >= TURNS:
                self._judge(self._contest)
            return
        self._rest -= 1
        self._recent = [*self._recent[-WINDOW + 1 :], seconds]
        slow = len(self._recent) == WINDOW and statistics.median(self._recent) > self.eager
        if slow and self._rest <= 0:
            self._contest = {True: [], False: []}

    def _judge(self, contest: dict[bool, list[float]]) -> None:
        eager, compiled = (statistics.median(contest[kind]) for kind in (True, False))
        if eager < CLEARLY * compiled:
            times = f"{1e3 * compiled:.1f} ms beside {1e3 * eager:.1f}"
            self.verdict = f"slower than the eager step, in turns with it: {times}"
        self.eager = max(self.eager, eager)  # the machine may have got slower for both
        self._contest, self._recent, self._rest = None, [], REST
