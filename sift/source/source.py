"""Batches of the wrapped loader, or of a copy of it that leaves samples out before they are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)

from loopwise import batch as batches
from loopwise.errors import InputError, StateError

from ..buffer import Samples
from .form import Form
from .indexed import Sample
from .planned import Choice, PlannedBatches


class Source:
    """Batches of the wrapped loader, with their sizes and, if they can be known, their indices.

    A plain ``DataLoader`` over a map-style dataset is copied, with a batch sampler of our own around the user's
    sampler; so is a subclass that has a method ``with_batch_sampler`` for that, such as ``RemoteDataLoader``.  Then indices
    are known, and samples can be left out before they are loaded.  Any other iterable is iterated as it is.

    Args:
        loader: the wrapped loader.
        batch_size: samples per batch; default: the loader's.
        drop_last: drop a short last batch; default: as the loader does.
    """

    def __init__(self, loader: Any, batch_size: int | None = None, drop_last: bool | None = None) -> None:
        self.loader, owners = loader, (loader, getattr(loader, "batch_sampler", None))
        own_sizes = (getattr(owner, "batch_size", None) for owner in owners)
        self._own_batch_size: int | None = next(filter(None, own_sizes), None)
        self.batch_size = batch_size or self._own_batch_size
        own_drop_last = any(getattr(owner, "drop_last", False) for owner in owners)
        self.drop_last = own_drop_last if drop_last is None else drop_last
        self.plans = _can_plan(loader)
        """True if samples can be left out before they are loaded."""
        self.planned = PlannedBatches(getattr(loader, "sampler", ()), self.batch_size, self.drop_last)
        # as they are now: Accelerate's sampler makes its generator, from a seed, at the first epoch
        own = getattr(loader, "batch_sampler", None)
        self._generators = [
            getattr(owner, "generator", None) for owner in (own, getattr(own, "sampler", None))
        ]
        self.form = Form(stacked=getattr(loader, "collate_fn", None) is default_collate)
        self._copy = _copy(loader, self.planned) if self.plans else loader

    def generators(self) -> list[torch.Generator]:
        """Return the user's own generators that the loader and its sampler draw from."""
        owners = (self.loader, getattr(self.loader, "sampler", None))
        generators = [*(getattr(owner, "generator", None) for owner in owners), *self._generators]
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

    def samples(self, batch_size: int) -> int:
        """Return the number of samples in an epoch, at most; a ``TypeError`` of a loader without length passes.

        Args:
            batch_size: number of samples per batch if the loader does not tell it.
        """
        if self.plans:
            return len(self.loader.sampler)
        return len(self.loader) * (self._own_batch_size or batch_size)

    def next_indices(self) -> torch.Tensor | None:
        """Return the indices of the next epoch, in any order, if they are known without running the user's sampler.

        Running it could change its state, or the random state that it draws from.
        """
        sampler: Any = getattr(self.loader, "sampler", None)
        shuffles = type(sampler) is RandomSampler and not sampler.replacement
        if type(sampler) is SequentialSampler or (shuffles and len(sampler) == len(sampler.data_source)):
            return torch.arange(len(sampler))
        if type(sampler) is SubsetRandomSampler:
            return torch.as_tensor(sampler.indices, dtype=torch.int64)
        if type(sampler) is DistributedSampler:  # it draws from a generator of its own, by its epoch
            return torch.tensor(list(sampler), dtype=torch.int64)
        return None

    def open(self, choose: Choice | None, skip: int, state: Any = None) -> Iterator[Samples]:
        """Start an epoch of the samples that ``choose`` returns, after its first ``skip`` batches."""
        if state is not None:
            self.loader.load_state_dict(state)
            return self._batches(iter(self.loader))
        planned, skips_unloaded = self.planned, self.plans and not self.loader.num_workers
        planned.choose, planned.skip = choose, skip if skips_unloaded else 0
        planned.forget()
        source = iter(self._copy)
        if self.plans and not planned.total:
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
            yield self._samples(batch, indices)
            del batch

    def _samples(self, batch: Any, indices: Any) -> Samples:
        if indices is not None and not self.form.agrees(batch, len(indices)):
            if self.planned.chosen is not None:
                raise InputError(
                    f"a batch {batches.describe(batch)} of {len(indices)} samples of the dataset",
                    "one row for each of these samples",
                    "a collate_fn that leaves samples out, or returns several rows for each",
                    "pass score_every=1, which scores what the collate_fn returns",
                )
            indices = None
        columns = {} if not _are_whole(indices) else {"index": torch.as_tensor(indices, dtype=torch.int64)}
        size = self.form.length(batch, self.batch_size) if indices is None else len(indices)
        return Samples(batch, size, columns, self.form.lists)


def length_of(loader: Any) -> int | None:
    """Return the number of batches of a loader, or ``None`` if it has no length."""
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _are_whole(indices: Any) -> bool:
    if indices is None or isinstance(indices, torch.Tensor):
        return indices is not None
    return set(map(type, indices)) == {int} or all(hasattr(index, "__index__") for index in indices)


def _can_plan(loader: Any) -> bool:
    return (
        (type(loader) is DataLoader or hasattr(type(loader), "with_batch_sampler"))
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and hasattr(loader.sampler, "__len__")
        and getattr(loader, "in_order", True)
    )


def _copy(loader: Any, batch_sampler: PlannedBatches) -> Any:
    if hasattr(loader, "with_batch_sampler"):
        return loader.with_batch_sampler(batch_sampler)
    names = ["num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator"]
    names += ["multiprocessing_context", "prefetch_factor", "persistent_workers", "in_order"]
    options = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    return DataLoader(loader.dataset, batch_sampler=batch_sampler, **options)
