"""Detection of a compiled step that became slower than the eager one, from the times of training steps."""

from __future__ import annotations

from collections import deque

from .measure import median

WINDOW = 20
"""Compiled steps whose median time is compared with the eager step's."""
CONTEST = 5
"""Steps of each kind in a contest."""
PAUSE = 200
"""Compiled steps between two contests."""
CLEARLY = 0.95
"""The eager step must take less than this share of the compiled one's time to be called faster."""


class SlowdownMonitor:
    """Monitor that times eager and compiled steps in turns if the compiled ones get slower than the eager ones were.

    Both kinds of step train the same, so a contest costs only the time of the slower kind.

    Args:
        eager: seconds of the eager step's forward and backward when they were measured.
    """

    def __init__(self, eager: float) -> None:
        self.eager = eager
        self.reason = ""
        """Reason to go back to the eager step, as soon as a contest shows one."""
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._contest: dict[bool, list[float]] | None = None
        self._pause = 0

    @property
    def wants_eager(self) -> bool:
        """``True`` if the next step should run eagerly, for a contest."""
        return self._contest is not None and len(self._contest[True]) <= len(self._contest[False]) < CONTEST

    def add(self, seconds: float, eager: bool) -> None:
        """Take into account that a step's forward and backward took ``seconds``."""
        if self._contest is not None:
            self._contest[eager].append(seconds)
            if len(self._contest[False]) >= CONTEST:
                self._decide(*(median(self._contest[kind]) for kind in (True, False)))
            return
        self._pause -= 1
        self._recent.append(seconds)
        slow = len(self._recent) == WINDOW and median(self._recent) > self.eager
        if slow and self._pause <= 0:
            self._contest = {True: [], False: []}

    def _decide(self, eager: float, compiled: float) -> None:
        """End a contest, by the median seconds of the steps of each kind."""
        if eager < CLEARLY * compiled:
            times = f"{1e3 * compiled:.1f} ms against {1e3 * eager:.1f} ms"
            self.reason = f"slower than the eager step, measured in turns with it: {times}"
        self.eager = max(self.eager, eager)  # the machine may have got slower for both
        self._contest, self._pause = None, PAUSE
        self._recent.clear()
