"""The iterator's knowledge of one lane."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ..protocol import LaneState, Task


@dataclass(slots=True)
class LaneRecord:
    """A lane: what it has to do, and the states from which it can go on elsewhere."""

    number: int
    active: bool = True
    """The lane has batches left in this epoch."""
    assigned: int = 0
    """Batches that were assigned to it and not handed over yet."""
    waiting: deque[Task] = field(default_factory=deque)
    """Tasks that were not submitted yet."""
    submitted: deque[Task] = field(default_factory=deque)
    """Tasks without a result yet."""
    epoch_start: bytes | None = None
    """Random states at the start of the epoch; ``None``: freshly seeded."""
    received: LaneState = field(default_factory=LaneState)
    """State after the last result."""
    delivered: LaneState = field(default_factory=LaneState)
    """State after the last batch that was handed over."""
    needs_start: bool = False
    """The next task has to bring the state, since the lane's worker does not have it."""

    def begin_epoch(self) -> None:
        """Forget the last epoch; the random stream goes on."""
        self.active, self.assigned = True, 0
        self.epoch_start = self.received.random
        self.received = self.delivered = LaneState(self.epoch_start)

    def resume(self, epoch_start: bytes | None, state: LaneState) -> None:
        """Go on from a saved state."""
        self.epoch_start, self.received, self.delivered = epoch_start, state, state
        self.needs_start = True

    def repeat(self) -> None:
        """Let all tasks without a result be submitted again."""
        self.needs_start = True
        while self.submitted:
            self.waiting.appendleft(self.submitted.pop())

    def start(self, iterable: bool) -> LaneState:
        """Return the state from which the next task can be executed anywhere."""
        if iterable and self.received.dataset is None:
            return LaneState(self.epoch_start, self.received.fetched)
        return self.received
