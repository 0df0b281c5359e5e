"""Model of a training step that waits for workers: predict its time and cost for any number of workers.

With ``n`` workers on ``k`` processors, a batch that takes ``c`` seconds of a processor and ``s`` seconds of waiting is ready
every ``max((c + s) / n, c / min(n, k))`` seconds.  A step takes the larger of this and of its own time with data at hand, and
the hand-over of the batch.  Without workers the loop loads each batch itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

FULL = 0.9
"""Share of a step in which the workers have to deliver a batch: a step that is not waited for has a reserve."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured times of one batch and one step, all in seconds."""

    cpu: float
    """Processor time of a batch in one worker."""
    waiting: float
    """Time of a batch in one worker that is no processor time: reading, the network."""
    slowest: float
    """Time in one worker of the batch at the 95th percentile: in-order delivery waits for the slowest."""
    step: float
    """Time of a step with a batch at hand."""
    handover: float = 0.0
    """Time that receiving a finished batch takes in the loop."""
    nbytes: int = 0
    """Bytes of a batch."""

    def ready(self, workers: int, processors: float) -> float:
        """Return the seconds between two finished batches."""
        if workers == 0:
            return self.cpu + self.waiting
        return max((self.cpu + self.waiting) / workers, self.cpu / min(workers, processors))

    def predicted(self, workers: int, processors: float) -> float:
        """Return the seconds that a step takes with a number of workers on a number of processors."""
        ready = self.ready(workers, processors)
        return (self.step + ready if workers == 0 else max(self.step, ready)) + self.handover

    def needed(self) -> int:
        """Return the number of workers that fill the step if each has the processor time that it needs."""
        return max(1, math.ceil(max(self.slowest, self.cpu + self.waiting) / (FULL * self.step)))

    def processors(self) -> int:
        """Return the number of processors that the workers keep busy when they fill the step."""
        return max(1, math.ceil(self.cpu / (FULL * self.step)))


def cost(seconds: float, *prices: float) -> float:
    """Return the cost of a step.

    Args:
        seconds: time of the step.
        prices: price of each machine for an hour; the result is in the same currency.
    """
    return sum(prices) / 3600 * seconds
