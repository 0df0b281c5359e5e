"""Measurement of the training time that saving takes, and its limit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

LEARNING = 1.0
"""Seconds before the limit applies: the first saved step allocates memory."""


class Budget:
    """Stopwatch of the time that a ``Watch`` spends on the training thread.

    Args:
        limit: largest share of the training time to spend; ``None``: no limit.
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
        """Count the time inside; nested blocks count once."""
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
        """Return a message if more time was spent than the limit allows, otherwise an empty text."""
        elapsed = time.perf_counter() - self._start
        if self.limit is None or elapsed < LEARNING or self.spent <= self.limit * elapsed:
            return ""
        return (
            f"saving took {self.spent / elapsed:.1%} of the time, more than max_overhead={self.limit:.1%}: "
            "fewer steps are saved"
        )
