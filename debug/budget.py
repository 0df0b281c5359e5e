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
        self.spent, self._start = 0.0, time.perf_counter()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """The time inside is counted."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent += time.perf_counter() - began

    def excess(self) -> str:
        """What is wrong where more was spent than may be, otherwise nothing."""
        elapsed = time.perf_counter() - self._start
        if self.limit is None or elapsed < LEARNING or self.spent <= self.limit * elapsed:
            return ""
        return (
            f"saving took {self.spent / elapsed:.1%} of the time, more than max_overhead={self.limit:.1%}: "
            "fewer steps are saved"
        )
