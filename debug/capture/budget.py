"""Measurement of the training time that saving takes, and its limit."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

LEARNING = 1.0
"""Seconds before the limit applies: the first saved step allocates memory."""


class Budget:
    """Stopwatch of the time that a ``Watch`` spends on the training thread, with a limit for what saving takes.

    Args:
        limit: largest share of the training time to spend on saving; ``None``: no limit.
        free: seconds of saving that the limit does not count.
    """

    def __init__(self, limit: float | None, free: float = 0.0) -> None:
        self.limit, self._free = limit, free
        self._done, self._depth, self._start = 0.0, 0, time.perf_counter()
        self._since = self._start
        self._saving = 0.0
        self._counted, self._counted_as_saving = _Counted(self, False), _Counted(self, True)

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._done + (time.perf_counter() - self._since if self._depth else 0.0)

    def begin_step(self) -> None:
        """Stop counting what an interrupt left open."""
        self._depth = 0

    def counted(self) -> AbstractContextManager[None]:
        """Count the time inside; nested blocks count once."""
        return self._counted

    def saving(self) -> AbstractContextManager[None]:
        """Count the time inside, and count it as saving."""
        return self._counted_as_saving

    def enter(self) -> None:
        """Begin to count."""
        if not self._depth:
            self._since = time.perf_counter()
        self._depth += 1

    def leave(self, saving: bool) -> None:
        """End to count."""
        self._depth = max(0, self._depth - 1)  # an interrupt may have set it to 0 meanwhile
        if not self._depth:
            seconds = time.perf_counter() - self._since
            self._done += seconds
            self._saving += seconds * saving

    def excess(self) -> str:
        """Return a message if saving took more time than the limit allows, otherwise an empty text."""
        elapsed = time.perf_counter() - self._start
        if self.limit is None or elapsed < LEARNING or self._saving <= self.limit * elapsed + self._free:
            return ""
        return (
            f"saving took {self._saving / elapsed:.1%} of the time, more than max_overhead={self.limit:.1%}: "
            "fewer steps are saved"
        )


class _Counted(AbstractContextManager[None]):
    """Block whose time is counted.  One object serves all blocks, since a step has some twenty of them."""

    def __init__(self, budget: Budget, saving: bool) -> None:
        self._budget, self._saving = budget, saving

    def __enter__(self) -> None:
        self._budget.enter()

    def __exit__(self, *_: object) -> None:
        self._budget.leave(self._saving)
