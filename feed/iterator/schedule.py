"""Order of an epoch: which lane loads which batch, and what is submitted when.

The rules are DataLoader's: ``prefetch_factor`` batches for each lane are drawn from the sampler at the start, and one more for each
batch that is handed over, just before; lanes take turns, and a lane that has ended is passed over.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..protocol import Result, Task
from .lane import LaneRecord
from .replay import Draws


@dataclass(slots=True)
class Entry:
    """A batch that was drawn and not handed over yet."""

    task: Task
    result: Result | None = None
    error: Exception | None = None
    """Error to raise in place of the batch."""
    drawn: int = 0
    """Number of the sampler's items up to this one."""
    checksum: int = 0
    """Checksum of those items."""
    pinned: Any = None
    """Future of the batch in pinned memory."""

    @property
    def answered(self) -> bool:
        """Return whether the batch can be handed over."""
        return self.result is not None or self.error is not None


class Schedule:
    """Numbers, lanes and submission of the batches of one epoch.

    Args:
        lanes: all lanes.
        prefetch: batches drawn in advance for each lane.
        in_order: lanes take strict turns; otherwise a batch goes to the next lane that has not too many.
        limit: most bytes of batches that are being loaded or wait to be handed over; ``None``: no limit.
        submit: function that hands a task to the pool.
    """

    def __init__(
        self,
        lanes: list[LaneRecord],
        prefetch: int,
        in_order: bool,
        limit: int | None,
        submit: Callable[[Task], None],
        iterable: bool,
    ) -> None:
        self.lanes, self._prefetch, self._in_order, self._limit = lanes, prefetch, in_order, limit
        self._submit, self._iterable = submit, iterable
        self.entries: dict[int, Entry] = {}
        self.closed = False
        """No more batches are drawn: the epoch was broken off."""
        self.largest = 0
        """Bytes of the largest batch so far."""

    def begin(
        self, sampler: Iterator[Any], epoch: int, dataset_epoch: int | None, number: int, lane: int
    ) -> None:
        """Begin an epoch.

        Args:
            sampler: iterator of the sampler.
            epoch: number of the pass.
            dataset_epoch: number that the user set, if any.
            number: number of the first batch.
            lane: lane of the first batch.
        """
        self._sampler, self._epoch, self._dataset_epoch = sampler, epoch, dataset_epoch
        self.closed, self.draws = False, Draws()
        self.entries = {}
        self.next_number = self.drawn = number
        count = len(self.lanes)
        self._turns = itertools.cycle([*range(lane, count), *range(lane)])
        self.waiting_bytes = 0

    def fill(self) -> None:
        """Draw the first batches."""
        for _ in range(self._prefetch * len(self.lanes)):
            self.draw()

    def draw(self) -> None:
        """Draw one batch from the sampler, if it has one, for the lane whose turn it is."""
        if self.closed:
            return
        try:
            indices = next(self._sampler)
        except StopIteration:
            return
        if type(indices) is list:
            indices = list(indices)  # the sampler may use its list for the next batch
        self.draws.add(indices)
        active = sum(lane.active for lane in self.lanes)
        for _ in self.lanes:
            lane = self.lanes[next(self._turns)]
            if lane.active and (self._in_order or lane.assigned < self._prefetch * len(self.lanes) // active):
                break
        else:
            return
        task = Task(self._epoch, self.drawn, 0, lane.number, indices, None, self._dataset_epoch)
        self.entries[self.drawn] = Entry(task, drawn=self.draws.count, checksum=self.draws.checksum)
        self.drawn += 1
        lane.assigned += 1
        lane.waiting.append(task)
        self.submit()

    def submit(self) -> None:
        """Submit waiting tasks, the lowest number first, as far as the limit of bytes allows.

        A lane always may have one batch on its way, so that a batch larger than the limit does not stop everything.
        """
        while True:
            free = [lane for lane in self.lanes if lane.waiting and self._may_submit(lane)]
            if not free:
                return
            self._submit_next(min(free, key=lambda lane: lane.waiting[0].number))

    def take(self) -> Entry | None:
        """Return the batch to hand over next and count it as handed over; ``None`` if it has not arrived."""
        entry = self.entries.get(self.next_number)
        if entry is not None and entry.answered:
            number = self.next_number
        elif not self._in_order and (answered := [n for n, e in self.entries.items() if e.answered]):
            number = answered[0]
        else:
            return None
        self.next_number += number == self.next_number
        return self.remove(number)

    def remove(self, number: int) -> Entry:
        """Remove a batch that is handed over or left out."""
        entry = self.entries.pop(number)
        self.lanes[entry.task.lane].assigned -= 1
        if entry.result is not None:
            self.waiting_bytes -= entry.result.nbytes
        return entry

    def pass_over(self) -> bool:
        """Pass over numbers that will not come; return whether any batch is left to wait for."""
        while self.next_number < self.drawn:
            entry = self.entries.get(self.next_number)
            if entry is not None and (entry.answered or self.lanes[entry.task.lane].active):
                return True
            if entry is not None:
                self.remove(self.next_number)
            self.next_number += 1
        return False

    def arrived(self, result: Result) -> Entry | None:
        """Note a result; return the batch's entry, or ``None`` if nobody waits for it: a duplicate, or an ended lane."""
        lane = self.lanes[result.lane]
        if not lane.submitted or lane.submitted[0].number != result.number or result.epoch != self._epoch:
            return None
        if result.attempt != lane.submitted[0].attempt:
            return None
        lane.submitted.popleft()
        if result.state is not None:
            lane.received = result.state
        entry = self.entries.get(result.number)
        if result.ended or entry is None:
            return None
        entry.result = result
        self.waiting_bytes += result.nbytes
        self.largest = max(self.largest, result.nbytes)
        return entry

    def replace_task(self, task: Task) -> None:
        """Change a task that waits to be submitted again."""
        lane = self.lanes[task.lane]
        lane.waiting = type(lane.waiting)(task if t.number == task.number else t for t in lane.waiting)
        if (
            entry := self.entries.get(task.number)
        ) is not None:  # nobody waits for tasks of a lane that has ended
            entry.task = task

    def withdraw(self, number: int, lane: LaneRecord) -> None:
        """Take back a task that waits to be submitted."""
        lane.waiting = type(lane.waiting)(task for task in lane.waiting if task.number != number)

    def _may_submit(self, lane: LaneRecord) -> bool:
        if self._limit is None:
            return True
        if not lane.submitted and not any(
            e.answered for e in self.entries.values() if e.task.lane == lane.number
        ):
            return True
        loading = sum(len(other.submitted) for other in self.lanes)
        return bool(self.largest) and self.waiting_bytes + (loading + 1) * self.largest <= self._limit

    def _submit_next(self, lane: LaneRecord) -> None:
        task = lane.waiting.popleft()
        if lane.needs_start:
            lane.needs_start = False
            task = replace(task, start=lane.start(self._iterable))
        elif task.start is not None:
            task = replace(task, start=None)
        lane.submitted.append(task)
        self._submit(task)
