"""Execute tasks of any lanes: seed, fetch, collate, pack; the same in local processes and in remote actors."""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass
from typing import Any

from ..packing.memory import Memory
from ..packing.pack import Collating, Packed, Packer, Retained
from ..protocol import LaneState, Result, Task, Work
from ..torch_internals import clear_worker_info, is_wrapped_exception, wrap_exception
from . import states
from .copies import copied
from .lane import Lane, Progress


@dataclass(slots=True)
class Reply:
    """Answer of a worker to a task, before it travels; ``protocol.Result`` describes the fields that both have."""

    epoch: int
    number: int
    attempt: int
    lane: int
    packed: Packed | None = None
    error: bytes | None = None
    """Pickle of the wrapped exception."""
    ended: bool = False
    state: LaneState | None = None
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stateless: str = ""

    def fields(self) -> tuple[tuple[Any, ...], tuple[Any, ...] | None]:
        """Return what travels besides the blocks: the fields for ``result``, and the packed batch.

        The packed batch is its header, its small tensors, the places and the bytes of its blocks, the number of objects that
        were pickled, and the bytes of the whole; ``None``: there is no batch.
        """
        packed, body = self.packed, None
        if packed is not None:
            places = [block.place for block in packed.blocks]
            body = packed.header, packed.inline, places, packed.sizes, packed.pickled, packed.nbytes
        task = self.epoch, self.number, self.attempt, self.lane
        times = self.seconds, self.cpu_seconds
        return (*task, self.error, self.ended, self.state, *times, self.stateless), body


def result(fields: tuple[Any, ...], batch: Any, nbytes: int) -> Result:
    """Return the result of a task from the fields of its reply.

    Args:
        fields: the first part of ``Reply.fields``.
        batch: function that returns the batch; ``None``: there is none.
        nbytes: bytes of the batch.
    """
    epoch, number, attempt, lane, error, ended, state, seconds, cpu_seconds, stateless = fields
    raised = None if error is None else pickle.loads(error)
    return Result(
        epoch, number, attempt, lane, batch, raised, ended, state, nbytes, seconds, cpu_seconds, stateless
    )


def _no_progress(number: int, position: int) -> None:
    pass


class Worker:
    """Executor of tasks in one process, which belongs to it: it changes the process's random states.

    Args:
        work: the user's dataset and functions.
        memory: where the large tensors of batches go.
        progress: function that is told which sample is fetched next, before it is fetched.
        several: whether tasks of more than one lane may come.
    """

    def __init__(
        self, work: Work, memory: Memory, progress: Progress = _no_progress, several: bool = True
    ) -> None:
        self._work, self._memory, self._progress, self._several = work, memory, progress, several
        self._lanes: dict[int, Lane] = {}
        self._current: Lane | None = None
        self._retained: list[Retained] = []

    def run(self, task: Task) -> Reply:
        """Execute a task.  An exception of the user's code is part of the reply; ``BaseException`` is raised."""
        start, cpu = time.perf_counter(), time.process_time()
        reply = Reply(task.epoch, task.number, task.attempt, task.lane)
        self._free_retained()
        try:
            lane = self._enter(task)
        except Exception:  # of the dataset's copy
            reply.error = _pickled(wrap_exception(task.lane))
            return reply
        batch: Any = None
        packer = Packer(self._memory)
        try:
            with Collating(packer):
                batch, reply.ended = lane.fetch(task, self._progress)
            if is_wrapped_exception(batch):
                reply.error = _pickled(batch)
            elif not reply.ended:
                reply.packed = packer.pack(batch)
        except Exception:
            reply.error = _pickled(wrap_exception(task.lane))
        del batch
        self._retained += packer.finish(reply.packed)
        reply.state, reply.stateless = lane.state(), lane.stateless
        reply.seconds, reply.cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
        return reply

    def _free_retained(self) -> None:
        """Free the blocks of earlier tensors that the user's code has dropped by now."""
        kept = []
        for reference, block in self._retained:
            if reference() is None:
                self._memory.free(block)
            else:
                kept.append((reference, block))
        self._retained = kept

    def close(self) -> None:
        """Forget the lanes; ``get_worker_info`` returns ``None`` again."""
        self._lanes.clear()
        clear_worker_info()

    def _enter(self, task: Task) -> Lane:
        """Return the lane of a task after making it the current one."""
        if task.lane not in self._lanes:
            self._leave()
            self._lanes[task.lane] = lane = Lane(self._work, task.lane, self._copy_of_dataset())
            self._current = lane
            lane.begin()
        elif self._current is not self._lanes[task.lane]:
            self._leave()
            self._current = lane = self._lanes[task.lane]
            lane.enter()
            if lane.random is not None:
                states.set(lane.random)
        return self._lanes[task.lane]

    def _leave(self) -> None:
        """Keep the random states of the current lane: those after ``begin`` too, which no reply has."""
        if self._current is not None and self._work.seeding == "worker":
            self._current.random = states.get()

    def _copy_of_dataset(self) -> Any:
        """Return the dataset for a lane.

        DataLoader's workers have a copy each.  Lanes that share a worker need one if copies can differ: an iterable dataset
        has a position, and ``worker_init_fn`` usually changes the dataset.
        """
        apart = self._work.iterable or self._work.worker_init_fn is not None
        return copied(self._work.dataset) if self._several and apart else self._work.dataset


def _pickled(error: Any) -> bytes:
    """Return the pickle of a wrapped exception, as a ``RuntimeError`` if its class cannot be pickled."""
    try:
        return pickle.dumps(error)
    except Exception:
        error.exc_msg = f"{error.exc_type.__name__}: {error.exc_msg}"
        error.exc_type = RuntimeError
        return pickle.dumps(error)
