"""One lane in a worker: its copy of the dataset, its random stream, and its samples."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from ..protocol import LaneState, Task, Work
from ..torch_internals import iterable_fetcher, set_worker_info, wrap_exception
from . import states

Progress = Callable[[int, int], None]
"""Function that is told the number of a batch, and the position in it of the sample that is fetched next; -1: unknown."""


class Lane:
    """A random stream and what depends on it; ``enter`` makes it the current one of the process."""

    def __init__(self, work: Work, number: int, dataset: Any) -> None:
        self.work, self.number, self.dataset = work, number, dataset
        self.seed = 0
        self.random: bytes | None = None
        """Random states after the lane's last task."""
        self._epoch: int | None = None
        self._fetcher: Any = None
        self._ended = False
        self._fetched = 0
        self._failure: Any = None
        """Exception of ``worker_init_fn``."""
        self.stateless = ""
        """Exception of the dataset's ``state_dict`` after the last task."""

    def begin(self) -> None:
        """Seed the process for the lane and call ``worker_init_fn``, as a worker of DataLoader does when it starts."""
        self.seed = states.seed_lane(self.work.base_seed, self.number)
        self.enter()
        if self.work.worker_init_fn is not None:
            try:
                self.work.worker_init_fn(self.number)
            except Exception:
                self._failure = wrap_exception(self.number)

    def enter(self) -> None:
        """Make the lane the one that ``get_worker_info`` describes."""
        set_worker_info(self.number, self.work.lanes, self.seed, self.dataset)

    def fetch(self, task: Task, progress: Progress) -> tuple[Any, bool]:
        """Return the batch of a task, or the wrapped exception of ``worker_init_fn``; and whether the lane has ended."""
        if self._failure is not None:
            return self._failure, False
        if self._epoch != task.epoch or task.start is not None:
            self._start_epoch(task, progress)
        if not self.work.iterable:
            return self._fetch_map(task, progress), False
        if self._ended:
            return None, True
        progress(task.number, -1)
        try:
            return self._fetch_next(task), False
        except StopIteration:
            self._ended = True
            return None, True

    def state(self) -> LaneState | None:
        """Return the lane's state after its last task; ``None`` if no random number was drawn and nothing was fetched."""
        if self.work.seeding == "sample":
            return None
        random = states.get()
        if random == self.random and not self.work.iterable:
            return None
        self.random = random
        if not self.work.iterable:
            return LaneState(random)
        return LaneState(random, self._fetched, self._dataset_state())

    def _dataset_state(self) -> Any:
        """Return the state of an iterable dataset that has one, and ``None`` if that cannot be had or sent."""
        self.stateless = ""
        if not (hasattr(self.dataset, "state_dict") and hasattr(self.dataset, "load_state_dict")):
            return None
        try:
            state = self.dataset.state_dict()
            pickle.dumps(state)
            return state
        except Exception as error:
            self.stateless = f"{type(error).__name__}: {error}"
            return None

    def _start_epoch(self, task: Task, progress: Progress) -> None:
        self._ended, self._fetched = False, 0
        if task.dataset_epoch is not None and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(task.dataset_epoch)
        start = task.start or LaneState()
        if start.random is not None:
            states.set(start.random)
        self._epoch = task.epoch
        if not self.work.iterable:
            return
        if start.dataset is not None:
            self.dataset.load_state_dict(start.dataset)
        self._fetcher = iterable_fetcher(
            self.dataset, self.work.auto_collation, self.work.collate_fn, self.work.drop_last
        )
        if start.dataset is not None:
            self._fetched = start.fetched
            if start.random is not None:
                states.set(start.random)
            return
        for number in range(start.fetched):
            progress(number, -1)
            self._pass_over(task)

    def _pass_over(self, task: Task) -> None:
        """Fetch a batch that was delivered before; its exception was raised before."""
        try:
            self._fetch_next(task)
        except StopIteration:
            self._ended = True
        except Exception:
            return

    def _fetch_next(self, task: Task) -> Any:
        self._fetched += 1
        return self._fetcher.fetch(task.indices)

    def _fetch_map(self, task: Task, progress: Progress) -> Any:
        """Fetch by index; with ``seeding="sample"`` each sample and the collate function get a seed of their own."""
        dataset, indices = self.dataset, task.indices
        seeded = self.work.seeding == "sample"
        epoch = task.epoch if task.dataset_epoch is None else task.dataset_epoch
        identity = (self.work.base_seed, epoch, task.number)
        if not self.work.auto_collation or getattr(dataset, "__getitems__", None):
            progress(task.number, -1 if self.work.auto_collation else 0)
            if seeded:
                states.seed_sample(*identity, 0)
            samples = dataset.__getitems__(indices) if self.work.auto_collation else dataset[indices]
        else:
            samples = []
            for position, index in enumerate(indices):
                progress(task.number, position)
                if seeded:
                    states.seed_sample(*identity, 1 + position)
                samples.append(dataset[index])
        progress(task.number, -1)
        if seeded:
            states.seed_sample(*identity, -1)
        return self.work.collate_fn(samples)
