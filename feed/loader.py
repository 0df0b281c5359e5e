"""DataLoader whose workers are processes here or on other machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset, IterDataPipe, MapDataPipe, Sampler

from loopwise.errors import InputError

from . import options, rebuilt, state
from .iterator.iterator import PoolIterator
from .iterator.saved import Position, Saved
from .iterator.single import SingleIterator
from .processes import ProcessPool
from .protocol import Counters, Pool
from .torch_internals import cpu_count, is_iterable, plain_iterator

T = TypeVar("T", covariant=True)
OPTIONS = [
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory_device",
    "in_order",
    "group",
    "prefetch_bytes",
    "workers",
    "seeding",
    "on_crash",
]
"""Arguments that say nothing of which samples are in which batch."""


class RemoteDataLoader(DataLoader[T]):
    """DataLoader with the same batches in the same order, faster, that outlives its workers and can resume in an epoch.

    All arguments of ``torch.utils.data.DataLoader``, from ``dataset`` to ``in_order``, mean what they mean there.
    ``num_workers`` is the number of *lanes*: random streams, seeded as DataLoader seeds its workers.  For the same seeds

    - the indices and their order are always DataLoader's;
    - batches are equal bit by bit for the same ``num_workers``, whatever the number and place of the processes, and after
      workers died;
    - with ``seeding="sample"`` batches are equal for any ``num_workers`` of at least 1, but are not DataLoader's.

    This does not hold for random generators and caches inside the dataset object, for ``os.urandom``, clocks, and libraries that
    are not seeded by torch, NumPy or Python.  With ``in_order=False`` only the sampler's order is DataLoader's.

    Args:
        group: name of the group of machines whose workers load the batches; ``None``: processes on this machine.
        prefetch_bytes: most bytes of batches that are being loaded or wait for the training loop; each lane may always have
            one.  ``None``: no limit besides ``prefetch_factor``.
        workers: number of worker processes, at most ``num_workers``, which share the lanes; default: ``num_workers``.
            ``"auto"``: on this machine one for each processor; in a group as many as training waits for, at most one for each
            processor of the group.
        seeding: ``"worker"``: a random stream for each lane, as in DataLoader.  ``"sample"``: a seed for each sample, from its
            position in the epoch.  Default: ``"worker"``, but ``"sample"`` with ``workers="auto"``.
        on_crash: what to do with a sample that has ended its worker process twice: ``"raise"`` an error that names it in place of
            the batch, or ``"skip"`` it with a warning.

    Attributes:
        iterable: whether the dataset is an ``IterableDataset``.
        told: names of the warnings that this loader has issued.

    Raises:
        InputError: invalid arguments that DataLoader does not have.
        StateError: while iterating, workers that cannot work.
        ValueError, TypeError, ...: as DataLoader.
    """

    _epoch = 0
    _set_epoch: int | None = None
    _saved: Saved | None = None
    _loaded: dict[str, Any] | None = None
    _position: Position | None = None

    def __init__(
        self,
        dataset: Dataset[T],
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        group: str | None = None,
        prefetch_bytes: int | None = None,
        workers: int | str | None = None,
        seeding: str | None = None,
        on_crash: str = "raise",
    ) -> None:
        self.group, self.prefetch_bytes, self.workers, self.on_crash = (
            group,
            prefetch_bytes,
            workers,
            on_crash,
        )
        super().__init__(
            dataset,
            batch_size,
            shuffle,
            sampler,
            batch_sampler,
            num_workers,
            collate_fn,
            pin_memory,
            drop_last,
            timeout,
            worker_init_fn,
            multiprocessing_context,
            generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
            pin_memory_device=pin_memory_device,
            in_order=in_order,
        )
        options.validate(workers, num_workers, prefetch_bytes, on_crash)
        self.iterable = is_iterable(self)
        self.seeding = options.resolved_seeding(seeding, workers, self.iterable)
        if group is not None and not num_workers:
            raise InputError(
                f"group={group!r} with num_workers=0",
                "num_workers of at least 1",
                "num_workers was left out; it is the number of random streams that the workers of the group share",
                "pass num_workers=8, for instance",
            )
        self.told: set[str] = set()
        rebuilt.add(self)

    def with_batch_sampler(
        self, batch_sampler: Sampler[list[Any]] | Iterable[list[Any]]
    ) -> RemoteDataLoader[T]:
        """Return a loader of the same dataset with the same options, whose batches another sampler chooses."""
        options = {name: getattr(self, name) for name in OPTIONS}
        return type(self)(self.dataset, batch_sampler=batch_sampler, **options)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the next epoch, for the sampler, for the dataset in the workers, and for ``seeding="sample"``.

        It is passed to the ``set_epoch`` of the sampler, the batch sampler and the dataset, if they have one.
        """
        self._set_epoch = epoch
        owners: tuple[Any, ...] = (self.sampler, self.batch_sampler, self.dataset)
        for owner in owners:
            if hasattr(owner, "set_epoch"):
                owner.set_epoch(epoch)

    def check_worker_number_rationality(self) -> None:
        """Warn if more worker processes are started on this machine than it has processors, as DataLoader does."""
        if self.group is not None:
            return
        count = options.local_processes(self.workers, self.num_workers)
        available = cpu_count()
        if available is None or count > available:
            super().check_worker_number_rationality()

    # -- state ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the batch that was handed over last.

        Iterating a loader made with the same arguments goes on there after ``load_state_dict``: the rest of the epoch first, then
        whole epochs.  A state taken after the last batch of an epoch, but before the loop has ended, leaves nothing of it.  Take
        the global random states of torch, NumPy and Python with it, as for any checkpoint, unless ``generator`` is given.
        """
        if self._loaded is not None:
            return dict(self._loaded)
        return state.taken(self, self._position, self._epoch, self._set_epoch)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state of ``state_dict`` at the next iteration.

        A number that ``set_epoch`` of the saved loader was given is set here, too.

        Raises:
            InputError: the state is of a loader whose batches differ.
            StateError: it describes a position that cannot be reached exactly; or, at the next iteration, the sampler does not
                repeat its order.
        """
        self._saved = state.restored(self, state_dict)
        self._epoch = state_dict["epoch"]
        if state_dict["set_epoch"] is not None:
            self.set_epoch(state_dict["set_epoch"])
        self._loaded = dict(state_dict)

    def take_saved(self) -> Saved | None:
        """Return the point from which the next iteration goes on, which is used once."""
        saved, self._saved, self._loaded = self._saved, None, None
        return saved

    def next_epoch(self) -> tuple[int, int | None]:
        """Return the number of the epoch that begins, and the number that ``set_epoch`` gave it."""
        number, self._epoch = self._epoch, self._epoch + 1
        return number, self._set_epoch

    def report(self) -> dict[str, int]:
        """Return counts of the latest iteration: batches received, private copies, pickled tensors, lost workers, held bytes.

        ``workers`` is the present number of workers, 0 after the iteration.
        """
        counters = Counters() if self._position is None else self._position.counters
        return {
            "batches": counters.batches,
            "copies": counters.copies,
            "pickled": counters.pickled,
            "workers_lost": counters.workers_lost,
            "held_bytes": counters.held_bytes(),
            "workers": counters.workers(),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes of a copy, in this process or another one, which begins a new epoch."""
        return self.__dict__ | {"_position": None, "_iterator": None}

    # -- iterators ------------------------------------------------------------------------------

    def __iter__(self) -> Any:
        rebuilt.discard(self)
        iterator = super().__iter__()
        self._position = getattr(iterator, "position", None)
        return iterator

    def _get_iterator(self) -> Any:
        if isinstance(self.dataset, (IterDataPipe, MapDataPipe)):
            return plain_iterator(self)
        if not self.num_workers:
            return SingleIterator(self, self.take_saved())
        self.check_worker_number_rationality()
        return PoolIterator(self, self._pool(), self.take_saved())

    def _pool(self) -> Pool:
        if self.group is not None:
            from .remote.pool import RemotePool  # Ray and ZeroMQ are an extra

            number = options.remote_workers(self.workers, self.num_workers)
            return RemotePool(self.group, number, self._batches_of_worker(number or 1), self.num_workers)
        count = options.local_processes(self.workers, self.num_workers)
        context = self.multiprocessing_context or multiprocessing.get_context()
        return ProcessPool(context, count, self._batches_of_worker(count))

    def _batches_of_worker(self, workers: int) -> int:
        """Return the number of batches for which each worker keeps memory."""
        return -(-self.num_workers // workers) * (self.prefetch_factor or 0) + 2
