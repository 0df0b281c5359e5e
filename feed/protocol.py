"""Interface between the loader's iterator, which numbers batches, and a pool of workers, which loads them.

The iterator is the only place that knows which batch comes next.  It gives a pool ``Task``s and takes back ``Result``s, or
``Lost`` if a worker ended.  A pool knows nothing of samplers and epochs.  It promises:

- Every task is answered by one ``Result``, unless its lane is named by a ``Lost`` or the pool is closed first.
- The tasks of one lane are executed one after the other, in the order of ``submit``, by one worker.  The lane stays with that
  worker, which keeps the lane's random states between tasks.  Several lanes may share a worker.
- Once ``receive`` has returned a ``Lost``, no result of an earlier task of its lanes is returned.  The iterator submits those
  tasks again with a higher ``attempt``; the first of each lane has a ``start``, so that it does not matter which worker gets
  the lane.  A pool that wants to move a lane to another worker therefore stops it and returns a ``Lost`` without a task.

A worker of any pool executes tasks by ``loopwise.feed.lanes.Worker``, which seeds, fetches, collates and packs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that the workers of a pool need to load batches; it can be pickled if the user's objects can."""

    dataset: Any
    iterable: bool
    """The dataset is an ``IterableDataset``: each lane iterates a copy of its own."""
    auto_collation: bool
    """Tasks have a list of indices for a batch, not a single index."""
    collate_fn: Callable[[Any], Any]
    drop_last: bool
    worker_init_fn: Callable[[int], None] | None
    """Function that is called with the lane's number before the lane's first task in a worker."""
    base_seed: int
    lanes: int
    """Number of lanes: the ``num_workers`` that ``get_worker_info`` reports."""
    seeding: str
    """``"worker"``: a random stream for each lane; ``"sample"``: a seed for each sample."""


@dataclass(frozen=True, slots=True)
class LaneState:
    """The point in a lane from which a task can be executed anywhere."""

    random: bytes | None = None
    """Random states of torch, NumPy and Python, as of ``loopwise.feed.lanes.states``; ``None``: as freshly seeded."""
    fetched: int = 0
    """Batches that the lane has fetched in this epoch, which a new iterator of an iterable dataset has to pass over."""
    dataset: Any = None
    """``state_dict()`` of an iterable dataset that has one; its ``load_state_dict`` then replaces passing over."""


@dataclass(frozen=True, slots=True)
class Task:
    """One batch to load."""

    epoch: int
    """Number of the pass over the data; a lane that sees a new number iterates its dataset anew."""
    number: int
    """Number of the batch in the epoch, from 0."""
    attempt: int
    """Number of earlier submissions of this batch."""
    lane: int
    indices: Any
    """The sampler's item: a list of indices, or one index without automatic batching."""
    start: LaneState | None = None
    """State of the lane before the task; ``None``: the lane goes on from its last task, or begins freshly seeded."""
    dataset_epoch: int | None = None
    """Argument for the ``set_epoch`` of the worker's copy of the dataset at the start of the epoch, if it has one."""


@dataclass(frozen=True, slots=True)
class Result:
    """Answer to a task: a batch, the user's exception, or the end of an iterable lane."""

    epoch: int
    number: int
    attempt: int
    lane: int
    unpack: Callable[[], Any] | None = None
    """Function that returns the batch; the iterator calls it once, when the batch is handed to the user.  The batch stays valid
    while the user holds it or any part of it."""
    error: Any = None
    """torch's ``ExceptionWrapper`` of the exception that the dataset or the collate function raised."""
    ended: bool = False
    """The lane's iterable dataset has no more batches in this epoch."""
    state: LaneState | None = None
    """State of the lane after the task; ``None``: as before the task."""
    nbytes: int = 0
    """Bytes that the batch occupies."""
    seconds: float = 0.0
    """Time that the worker took for the task, in seconds."""
    cpu_seconds: float = 0.0
    """Processor time that the worker took for the task, in seconds."""
    stateless: str = ""
    """Why ``state`` has no state of an iterable dataset that has ``state_dict``: its exception."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker that ended, or that gave up lanes."""

    lanes: Sequence[int]
    """Lanes whose unanswered tasks have to be submitted again."""
    reason: str = ""
    """The event as the end of a sentence about the worker: ``was ended by SIGKILL``."""
    number: int | None = None
    """Number of the batch that the worker was loading; ``None`` if it was loading none, or if that is not known."""
    position: int | None = None
    """Position of the sample in that batch; ``None`` if it is not known."""
    guilty: bool = True
    """The task may be the cause.  ``False`` if the worker was stopped for another reason, such as a lost machine."""


class Pool(Protocol):
    """Workers that execute tasks, here or elsewhere.

    An iterator makes a pool, starts it once and closes it once.  All calls come from one thread.
    """

    def start(self, work: Work) -> None:
        """Start the workers.  They may still be starting when this method returns.

        Raises:
            InputError: the work cannot be sent to workers, such as a dataset that cannot be pickled.
        """

    def submit(self, task: Task) -> None:
        """Hand over a task; this method does not wait for workers.  A lane without a worker gets one."""

    def receive(self, timeout: float | None) -> list[Result | Lost]:
        """Return the results that have arrived, at least one item unless ``timeout`` (seconds; ``None``: none) has passed.

        Raises:
            StateError: no worker is left, and none can be started.
        """

    def close(self) -> None:
        """End the workers within seconds and release everything; batches that the user holds stay valid."""

    @property
    def processes(self) -> Sequence[Any]:
        """Return the local processes of the pool (``multiprocessing.Process``), none if it has only remote workers."""

    @property
    def counters(self) -> Counters:
        """Return the counts of this pool."""


@dataclass(slots=True)
class Counters:
    """Counts of a pool, for ``loader.report()`` and tests."""

    batches: int = 0
    """Batches received."""
    copies: int = 0
    """Batches that the user received as a private copy, since too many batches in shared memory were held."""
    pickled: int = 0
    """Objects in batches that had to be pickled with their data, such as sparse tensors."""
    workers_lost: int = 0
    held_bytes: Callable[[], int] = field(default=int)
    """Bytes in batches that were received and are still alive."""
    workers: Callable[[], int] = field(default=int)
    """Present number of workers."""
