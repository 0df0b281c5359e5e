"""Measurement of the training time that saving takes, and its limit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

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

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Count the time inside, and count it as saving."""
        start = time.perf_counter()
        try:
            with self.counted():
                yield
        finally:
            self._saving += time.perf_counter() - start

    def excess(self) -> str:
        """Return a message if saving took more time than the limit allows, otherwise an empty text."""
        elapsed = time.perf_counter() - self._start
        if self.limit is None or elapsed < LEARNING or self._saving <= self.limit * elapsed + self._free:
            return ""
        return (
            f"saving took {self._saving / elapsed:.1%} of the time, more than max_overhead={self.limit:.1%}: "
            "fewer steps are saved"
        )
