"""How much of the training time goes into saving, and whether that is too much."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

LEARNING = 1.0
"""Seconds before a limit is held: the first saved step takes memory."""


class Budget:
    """The time that is spent on the training thread.

    Args:
        limit: share of the training time that may be; ``None``: any.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._done, self._depth, self._start = 0.0, 0, time.perf_counter()
        self._since = self._start

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return self._done + (time.perf_counter() - self._since if self._depth else 0.0)

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """The time inside is counted, once where blocks are inside each other."""
        if not self._depth:
            self._since = time.perf_counter()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._done += time.perf_counter() - self._since

    def excess(self) -> str:
        """What is wrong where more was spent than may be, otherwise nothing."""
        elapsed = time.perf_counter() - self._start
        if self.limit is None or elapsed < LEARNING or self.spent <= self.limit * elapsed:
            return ""
        return (
            f"saving took {self.spent / elapsed:.1%} of the time, more than max_overhead={self.limit:.1%}: "
            "fewer steps are saved"
        )
