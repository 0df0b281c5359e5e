"""Measurement of the training time that saving takes, and its limit."""

from __future__ import annotations

import time
from types import TracebackType

from ..hooks.guards import Stopwatch

LEARNING = 1.0
"""Seconds before the limit applies: the first saved step allocates memory."""


class Budget:
    """Stopwatch of the time that a ``Watch`` spends on the training thread, with a limit for what saving takes.

    Args:
        limit: largest share of the training time to spend on saving; ``None``: no limit.
        free: seconds of saving that the limit does not count.

    Attributes:
        stopwatch: stopwatch of all the time.
    """

    def __init__(self, limit: float | None, free: float = 0.0) -> None:
        self.limit, self._free = limit, free
        self.stopwatch, self._start = Stopwatch(), time.perf_counter()
        self._saving = 0.0
        self._as_saving = _Saving(self)

    def begin_step(self) -> None:
        """Stop counting what an interrupt left open."""
        self.stopwatch.depth = self._as_saving.depth = 0

    def saving(self) -> _Saving:
        """Return a context in which the time that the stopwatch counts is that of saving."""
        return self._as_saving

    def add(self, seconds: float) -> None:
        """Add seconds of saving."""
        self._saving += seconds

    def excess(self) -> str:
        """Return a message if saving took more time than the limit allows, otherwise an empty text."""
        elapsed = time.perf_counter() - self._start
        if self.limit is None or elapsed < LEARNING or self._saving <= self.limit * elapsed + self._free:
            return ""
        return (
            f"saving took {self._saving / elapsed:.1%} of the time, more than max_overhead={self.limit:.1%}: "
            "fewer steps are saved"
        )


class _Saving:
    """Block whose time counts as saving; one object serves all blocks, and in nested blocks the outermost one counts."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.depth, self._since = budget, 0, 0.0

    def __enter__(self) -> None:
        if not self.depth:
            self._since = time.perf_counter()
        self.depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.depth = max(0, self.depth - 1)
        if not self.depth:
            self._budget.add(time.perf_counter() - self._since)
