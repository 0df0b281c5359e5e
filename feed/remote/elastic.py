"""The number of workers of a group that follows what training waits for.

Training that waits for more than 5 % of its time gets the workers that would load without waiting, if loading scales.  A number
of workers that has not made batches come faster is given up again for good.  Workers that have nothing to do most of the time
are ended, but the rest keeps a fifth of its time in reserve.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BATCHES, SECONDS = 16, 2.0
"""Least batches and seconds over which waiting is measured."""
WAITING = 0.05
"""Share of the time that training may wait."""
GAIN = 1.05
"""Least factor by which more workers have to make batches come faster."""
IDLE, BUSY = 0.6, 0.8
"""Share of their time that workers load, below which some are ended, and that the others then have at most."""


@dataclass(slots=True)
class Elastic:
    """Decisions about the number of workers.

    Args:
        most: most workers.
        count: number of workers now.
    """

    most: int
    count: int = 1
    _batches: int = 0
    _seconds: float = 0.0
    _waited: float = 0.0
    _loading: float = 0.0
    _before: tuple[int, float] | None = None
    """Number of workers before the last increase, and the batches a second that they loaded."""

    def restart(self) -> None:
        """Begin to measure anew, since workers are being started or an epoch begins."""
        self._batches, self._seconds, self._waited, self._loading = 0, 0.0, 0.0, 0.0

    def observe(self, batches: int, seconds: float, waited: float, loading: float) -> int:
        """Take a measurement, and return the number of workers from now on.

        Args:
            batches: batches that have arrived.
            seconds: time in which they have arrived.
            waited: part of that time in which training waited for batches.
            loading: time that the workers took for them, of all workers together.
        """
        self._batches += batches
        self._seconds += seconds
        self._waited += waited
        self._loading += loading
        if self._batches >= BATCHES and self._seconds >= SECONDS:
            self.count = self._decide()
            self.restart()
        return self.count

    def _decide(self) -> int:
        count, share, rate = self.count, self._waited / self._seconds, self._batches / self._seconds
        before, self._before = self._before, None
        if before is not None and rate < GAIN * before[1]:
            self.most = before[0]
            return self.most
        if share > WAITING and count < self.most:
            self._before = count, rate
            return min(self.most, max(count + 1, math.ceil(count / max(1.0 - share, 0.25))))
        used = self._loading / self._seconds
        if share <= WAITING and used < IDLE * count:
            return max(1, math.ceil(used / BUSY))
        return count
