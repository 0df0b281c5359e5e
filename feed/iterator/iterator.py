"""Iterator over the batches of a pool of workers; the only place that knows which batch comes next."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from ..protocol import Lost, Pool, Result, Task, Work
from ..torch_internals import BaseIterator, pinned
from .crashes import Crashes
from .lane import LaneRecord
from .notices import Notices
from .replay import RandomPoint
from .saved import Position, Saved
from .schedule import Entry, Schedule

_log = logging.getLogger("loopwise.feed")


class PoolIterator(BaseIterator):  # type: ignore[misc]  # torch's class has no annotations
    """Iterator of a loader with workers, as DataLoader's, but for deaths of workers, which it outlives.

    Args:
        loader: the loader.
        pool: workers that were not started yet.
        saved: the point from which to go on, if the loader was given a state.
    """

    _pool: Pool | None = None

    def __init__(self, loader: Any, pool: Pool, saved: Saved | None) -> None:
        present = RandomPoint(loader)
        if saved is not None and saved.first and saved.point is not None:
            saved.point.restore(loader)
        super().__init__(loader)
        if saved is not None:
            self._base_seed = saved.base_seed
        if saved is not None and not saved.first:
            present.restore(loader)  # the iterator that is continued had its seed already
        if not loader.prefetch_factor:
            raise AssertionError("prefetch_factor must be greater than 0 for MultiProcessingDataLoaderIter")
        self._iterable = loader.iterable
        self._lanes = [LaneRecord(number) for number in range(self._num_workers)]
        self.position = Position(present, self._base_seed, self._lanes, pool.counters)
        self._schedule = Schedule(
            self._lanes,
            loader.prefetch_factor,
            loader.in_order,
            loader.prefetch_bytes,
            pool.submit,
            self._iterable,
        )
        self._crashes = Crashes(loader.on_crash == "skip", self._iterable)
        self._notices = Notices(loader.told, loader.prefetch_bytes, self._num_workers)
        self._pinning = ThreadPoolExecutor(1, "loopwise-feed-pin") if self._pin_memory else None
        self._pool = pool
        pool.start(self._work(loader))
        try:
            self._begin(loader, saved, present, True)
        except BaseException:
            self._shutdown_workers()  # the exception's traceback keeps this object
            raise

    def _work(self, loader: Any) -> Work:
        return Work(
            self._dataset,
            self._iterable,
            self._auto_collation,
            self._collate_fn,
            self._drop_last,
            loader.worker_init_fn,
            self._base_seed,
            self._num_workers,
            loader.seeding,
        )

    # -- epochs ---------------------------------------------------------------------------------

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        """Begin the next epoch of a loader with persistent workers."""
        self._schedule.closed = True
        self._drain()
        self._begin(loader, loader.take_saved(), RandomPoint(loader), False)

    def _begin(self, loader: Any, saved: Saved | None, present: RandomPoint, first: bool) -> None:
        """Begin an epoch, or the rest of one that is resumed.

        Args:
            loader: the loader.
            saved: the point from which to go on, if the loader was given a state.
            present: the random states before this call and what it belongs to.
            first: the epoch is the first one of this iterator.
        """
        point = present
        if saved is not None and saved.point is not None:
            point = saved.point
            if not saved.first:
                point.restore(loader)
        super()._reset(loader)
        for lane in self._lanes:
            lane.begin_epoch()
        position = self.position
        position.point, position.first, position.finished = point, first, False
        position.epoch, position.set_epoch = loader.next_epoch()
        position.number = position.checksum = position.next_lane = 0
        if saved is not None:
            position.first = saved.first
            position.number, position.checksum, position.next_lane = (
                saved.delivered,
                saved.checksum,
                saved.next_lane,
            )
            for lane, (start, state) in zip(self._lanes, saved.lanes, strict=True):
                lane.resume(start, state)
        self._schedule.begin(
            self._sampler_iter, position.epoch, position.set_epoch, position.number, position.next_lane
        )
        if saved is not None and not self._iterable:
            self._schedule.draws.replay(self._sampler_iter, saved.delivered, saved.checksum)
        self._num_yielded = position.number
        self._schedule.fill()
        if saved is not None and saved.point is not None:
            present.restore_global()

    # -- batches --------------------------------------------------------------------------------

    def _next_data(self) -> Any:
        while True:
            if self._pool is None or not self._schedule.pass_over():
                self.position.finished = True
                if not self._persistent_workers:
                    self._shutdown_workers()
                raise StopIteration
            entry = self._schedule.take()
            if entry is not None:
                return self._hand_over(entry)
            self._receive()

    def _receive(self) -> None:
        assert self._pool is not None
        items = self._pool.receive(self._timeout or None)
        if not items:
            raise RuntimeError(f"DataLoader timed out after {self._timeout} seconds")
        for item in items:
            if isinstance(item, Lost):
                self._recover(item)
            else:
                self._arrive(item)
        self._schedule.submit()

    def _arrive(self, result: Result) -> None:
        entry = self._schedule.arrived(result)
        lane = self._lanes[result.lane]
        if result.ended and lane.active and result.epoch == self.position.epoch:
            lane.active = False
            self._schedule.draw()
        if entry is not None and self._pinning is not None and result.unpack is not None:
            entry.pinned = self._pinning.submit(_pin, result.unpack, self._pin_memory_device)
        self._notices.arrived(result)

    def _hand_over(self, entry: Entry) -> Any:
        """Commit a batch, draw the next one, and return the batch or raise its exception."""
        task, result = entry.task, entry.result
        lane = self._lanes[task.lane]
        if result is not None and result.state is not None:
            lane.delivered = result.state
        position = self.position
        position.number, position.checksum = task.number + 1, entry.checksum
        position.next_lane = (task.lane + 1) % self._num_workers
        self._schedule.draw()
        self._schedule.submit()
        if entry.error is not None:
            raise entry.error
        assert result is not None
        if result.error is not None:
            result.error.reraise()
        if entry.pinned is not None:
            return entry.pinned.result()
        return None if result.unpack is None else result.unpack()

    # -- deaths ---------------------------------------------------------------------------------

    def _recover(self, lost: Lost) -> None:
        """Let the tasks of a lost worker be executed again, unless one of them is at fault."""
        numbers = _numbers(self._lanes, lost)
        again = (
            f"its batches {', '.join(map(str, numbers))} are loaded again" if numbers else "it held no batch"
        )
        _log.warning("a worker %s; %s", lost.reason, again)
        for number in lost.lanes:
            lane = self._lanes[number]
            in_work = next((task for task in lane.submitted if task.number == lost.number), None)
            lane.repeat()
            for task in lane.waiting:
                self._schedule.replace_task(replace(task, attempt=task.attempt + 1))
            if in_work is not None:
                self._judge(replace(in_work, attempt=in_work.attempt + 1), lost, lane)

    def _judge(self, task: Task, lost: Lost, lane: LaneRecord) -> None:
        """Decide about the batch that the worker had in work when it ended."""
        verdict = self._crashes.judge(task, lost)
        if isinstance(verdict, Task):
            self._schedule.replace_task(verdict)
            return
        self._schedule.withdraw(task.number, lane)
        if task.number not in self._schedule.entries:
            return
        if verdict is None:
            self._schedule.remove(task.number)
            self._schedule.draw()
        else:
            self._schedule.entries[task.number].error = verdict
            if self._iterable:  # nothing behind that batch can be reached
                lane.active = False
                for later in tuple(lane.waiting):
                    self._schedule.withdraw(later.number, lane)

    def _drain(self) -> None:
        """Wait for the tasks of an epoch that was broken off, which advance the random streams as DataLoader's do."""
        while any(lane.submitted or lane.waiting for lane in self._lanes):
            self._receive()
            for number in [n for n, entry in self._schedule.entries.items() if entry.answered]:
                self._schedule.remove(number)
            self._schedule.submit()

    # -- end ------------------------------------------------------------------------------------

    @property
    def _workers(self) -> list[Any]:
        """Return the worker processes, under the name that DataLoader's iterators have."""
        return self._processes if self._pool is None else list(self._pool.processes)

    def _shutdown_workers(self) -> None:
        """End the workers; batches that were handed over stay valid."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        self._processes = list(pool.processes)
        self._schedule.entries.clear()
        pool.close()
        if self._pinning is not None:
            self._pinning.shutdown(wait=False, cancel_futures=True)

    def __del__(self) -> None:
        if not sys.is_finalizing():  # multiprocessing has ended the workers by then
            self._shutdown_workers()


def _numbers(lanes: list[LaneRecord], lost: Lost) -> list[int]:
    return sorted(task.number for number in lost.lanes for task in lanes[number].submitted)


def _pin(unpack: Callable[[], Any], device: str | None) -> Any:
    torch.set_num_threads(1)  # of this thread, so that the copy leaves the other processors to training
    return pinned(unpack(), device)
