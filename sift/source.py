"""Batches of the wrapped loader, or of a copy of it that leaves samples out before they are loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from loopwise import batch as batches
from loopwise import validate
from loopwise.errors import InputError, StateError

from .buffer import Samples

Choice = Callable[[torch.Tensor], torch.Tensor]
"""Function from the indices of an epoch's samples, in order, to those that are loaded."""

NO_INDEX = (
    "the wrapped loader is not a plain DataLoader over a map-style dataset, so samples have no index",
    "wrap the dataset: DataLoader(Indexed(dataset), ...) with Indexed from loopwise.sift",
)
"""Cause and fix of errors about samples without an index."""


class Sample(NamedTuple):
    """A sample, or a batch of them, with its index in the dataset."""

    index: Any
    value: Any


class IndexedCollate:
    """The user's collate function, wrapped for samples that carry their index."""

    def __init__(self, function: Callable[[list[Any]], Any]) -> None:
        expected = "a function from a list of samples to a batch"
        self.function = validate.function("function", function, expected, "Indexed.collate(collate_fn)")

    def __call__(self, samples: list[Sample]) -> Sample:
        return Sample(torch.tensor([s.index for s in samples]), self.function([s.value for s in samples]))


class Indexed(Dataset[Sample]):
    """Map-style dataset whose samples carry their index, for loaders that do not reveal the index otherwise.

    The sifting loader removes the index again.  A plain ``DataLoader`` over a map-style dataset needs no ``Indexed``.
    With a collate function of your own pass ``collate_fn=Indexed.collate(function)`` to your loader.

    Args:
        dataset: dataset with ``__getitem__`` and ``__len__``.

    Raises:
        InputError: the dataset is a stream.
    """

    collate = IndexedCollate

    def __init__(self, dataset: Dataset[Any]) -> None:
        if not hasattr(dataset, "__getitem__") or isinstance(dataset, IterableDataset):
            raise InputError(
                f"Indexed({type(dataset).__name__})",
                "a map-style dataset: one with __getitem__ and __len__",
                "samples of a stream have no index that stays the same over epochs",
                "use a policy that needs no indices, or make the dataset map-style",
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Sample:
        return Sample(index, self.dataset[index])


class _PlannedBatches(Sampler[list[int]]):
    """Batch sampler over the chosen indices of the user's sampler; remembers the batches that it yielded."""

    def __init__(self, sampler: Any, batch_size: Any, drop_last: bool) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        self.choose: Choice | None = None
        self.skip = 0
        self.total = 0
        """Number of samples in the current epoch, including those left out; 0: unknown."""
        self.chosen: torch.Tensor | None = None
        """Indices of the samples that the current epoch loads; ``None``: all."""
        self.yielded: deque[list[int]] = deque()
        self.order: torch.Tensor | None = None

    def plan(self) -> torch.Tensor:
        """Run through the user's sampler and choose, now instead of at the first batch."""
        order = torch.tensor(list(self.sampler), dtype=torch.int64)
        self.total = len(order)
        self.chosen = self.choose(order) if self.choose is not None else None
        self.order = order if self.chosen is None else self.chosen
        return self.order

    def __iter__(self) -> Iterator[list[int]]:
        order = self.plan() if self.order is None else self.order
        self.order = None
        stop = len(order) - len(order) % self.batch_size if self.drop_last else len(order)
        for start in range(self.skip * self.batch_size, stop, self.batch_size):
            indices = order[start : start + self.batch_size].tolist()
            self.yielded.append(indices)
            yield indices


class Source:
    """Batches of the wrapped loader, with their sizes and, if they can be known, their indices.

    A plain ``DataLoader`` over a map-style dataset is copied, with a batch sampler of our own around the user's
    sampler.  Then indices are known, and samples can be left out before they are loaded.  Any other iterable is iterated
    as it is.

    Args:
        loader: the wrapped loader.
        batch_size: samples per batch; default: the loader's.
        drop_last: drop a short last batch; default: as the loader does.
    """

    def __init__(self, loader: Any, batch_size: int | None = None, drop_last: bool | None = None) -> None:
        self.loader, owners = loader, (loader, getattr(loader, "batch_sampler", None))
        own_sizes = (getattr(owner, "batch_size", None) for owner in owners)
        self.batch_size: int | None = batch_size or next(filter(None, own_sizes), None)
        own_drop_last = any(getattr(owner, "drop_last", False) for owner in owners)
        self.drop_last = own_drop_last if drop_last is None else drop_last
        self.plans = _can_plan(loader)
        """True if samples can be left out before they are loaded."""
        self.planned = _PlannedBatches(getattr(loader, "sampler", ()), self.batch_size, self.drop_last)
        self._copy = _copy(loader, self.planned) if self.plans else loader

    def generators(self) -> list[torch.Generator]:
        """Return the user's own generators that the loader and its sampler draw from."""
        owners = (self.loader, getattr(self.loader, "sampler", None))
        generators = [getattr(owner, "generator", None) for owner in owners]
        return list({id(g): g for g in generators if isinstance(g, torch.Generator)}.values())

    def shared_samples(self) -> int:
        """Return the number of samples in the dataset that all ranks share by their index; 0: each rank has its own.

        The ranks share a dataset if a sampler divides it among them, such as a ``DistributedSampler``.
        """
        owners = [self.loader, getattr(self.loader, "batch_sampler", None)]
        samplers = [*owners[1:], *(getattr(owner, "sampler", None) for owner in owners)]
        parts = (getattr(s, name, 1) for s in samplers for name in ("num_replicas", "num_processes"))
        divided = any(isinstance(count, int) and count > 1 for count in parts)
        return len(self.loader.dataset) if divided and hasattr(self.loader, "dataset") else 0

    def state_dict(self) -> Any:
        """Return the state of a loader that has one (torchdata's ``StatefulDataLoader``), else ``None``."""
        bases = [base.__name__ for base in type(self.loader).__mro__]
        return self.loader.state_dict() if "StatefulDataLoader" in bases else None

    def open(self, choose: Choice | None, skip: int, state: Any = None) -> Iterator[Samples]:
        """Start an epoch of the samples that ``choose`` returns, after its first ``skip`` batches."""
        if state is not None:
            self.loader.load_state_dict(state)
            return self._batches(iter(self.loader))
        planned, skips_unloaded = self.planned, self.plans and not self.loader.num_workers
        planned.choose, planned.skip, planned.order = choose, skip if skips_unloaded else 0, None
        planned.yielded.clear()
        source = iter(self._copy)
        if planned.skip:
            planned.plan()  # the sampler draws while the random state is that of the epoch's start
        for _ in range(skip - planned.skip):
            next(source, None)
            if self.plans:
                planned.yielded.popleft()
        return self._batches(source)

    def _batches(self, source: Iterator[Any]) -> Iterator[Samples]:
        while True:
            try:
                batch = next(source)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
                    raise StateError(
                        f"a worker process of the wrapped DataLoader died ({error})",
                        "workers that live until the epoch ends",
                        "out of memory (the kernel killed it), too little shared memory, or a crash in native code",
                        "lower num_workers or batch_size, enlarge /dev/shm, or use num_workers=0 to see the crash itself",
                    ) from error
                raise
            indices = None
            if isinstance(batch, Sample):
                indices, batch = batch
            if self.plans:
                indices = self.planned.yielded.popleft()
            columns = {} if indices is None else {"index": torch.as_tensor(indices, dtype=torch.int64)}
            yield Samples(batch, batches.length(batch, self.batch_size), columns)
            del batch


def _can_plan(loader: Any) -> bool:
    return (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and hasattr(loader.sampler, "__len__")
        and getattr(loader, "in_order", True)
    )


def _copy(loader: DataLoader[Any], batch_sampler: _PlannedBatches) -> DataLoader[Any]:
    names = ["num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator"]
    names += ["multiprocessing_context", "prefetch_factor", "persistent_workers", "in_order"]
    options = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    return DataLoader(loader.dataset, batch_sampler=batch_sampler, **options)
