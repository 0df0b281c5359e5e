"""Where batches come from: the wrapped loader, or a copy of it that leaves samples out before they are loaded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from loopwise import batch as batches
from loopwise.errors import InputError, StateError

Choice = Callable[[torch.Tensor], torch.Tensor]
"""From the indices of an epoch's samples, in order, to those of them that are to be loaded."""

HIDDEN = (
    "the wrapped loader is not a plain DataLoader over a map-style dataset, so samples have no index",
    "wrap the dataset: DataLoader(Indexed(dataset), ...) with Indexed from loopwise.sift",
)
"""Cause and fix where samples have no index."""


class Sample(NamedTuple):
    """A sample, or a batch of them, with its index in the dataset."""

    index: Any
    value: Any


class _Collate:
    """A user's collate function for samples that carry their index."""

    def __init__(self, function: Callable[[list[Any]], Any]) -> None:
        self.function = function

    def __call__(self, samples: list[Sample]) -> Sample:
        return Sample(torch.tensor([s.index for s in samples]), self.function([s.value for s in samples]))


class Indexed(Dataset[Sample]):
    """A map-style dataset whose samples carry their index, for loaders that Loopwise cannot look into.

    The sifting loader takes the index off again.  A plain ``DataLoader`` over a map-style dataset
    needs none of this.  With a collate function of your own pass
    ``collate_fn=Indexed.collate(function)`` to your loader.
    """

    collate = _Collate

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


@dataclass(slots=True)
class Given:
    """One batch of the loader."""

    batch: Any
    size: int
    indices: torch.Tensor | None


class _Planner(Sampler[list[int]]):
    """Batches of the sampler's indices that ``choose`` leaves, and a record of those handed out."""

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool) -> None:
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last
        self.choose: Choice | None = None
        self.skip = 0
        self.total = 0
        self.chosen: torch.Tensor | None = None
        self.issued: deque[list[int]] = deque()
        self._ready: torch.Tensor | None = None

    def prepare(self) -> torch.Tensor:
        """Go through the user's sampler and choose, now instead of when the first batch is asked for."""
        order = torch.tensor(list(self.sampler), dtype=torch.int64)
        self.total = len(order)
        self.chosen = self.choose(order) if self.choose is not None else None
        self._ready = order if self.chosen is None else self.chosen
        return self._ready

    def forget(self) -> None:
        """Undo ``prepare``."""
        self._ready = None

    def __iter__(self) -> Iterator[list[int]]:
        left = self.prepare() if self._ready is None else self._ready
        self._ready = None
        stop = len(left) - len(left) % self.batch_size if self.drop_last else len(left)
        for start in range(self.skip * self.batch_size, stop, self.batch_size):
            indices = left[start : start + self.batch_size].tolist()
            self.issued.append(indices)
            yield indices


class Source:
    """Batches of the wrapped loader, with their sizes and, where they can be known, their indices.

    A plain ``DataLoader`` over a map-style dataset is copied, with a batch sampler of ours around
    the user's sampler; then indices are known and samples can be left out before they are loaded.
    Everything else is gone through as it comes.
    """

    def __init__(self, loader: Any, batch_size: int | None, drop_last: bool) -> None:
        self.loader = loader
        self.batch_size = batch_size
        self._planner: _Planner | None = None
        self._copy = loader
        if _can_plan(loader):
            self._planner = _Planner(loader.sampler, batch_size or loader.batch_sampler.batch_size, drop_last)
            self._copy = _copied(loader, self._planner)

    @property
    def plans(self) -> bool:
        """Whether samples can be left out before they are loaded."""
        return self._planner is not None

    @property
    def chosen(self) -> torch.Tensor | None:
        """Indices of the samples that the current epoch loads; ``None``: all."""
        return None if self._planner is None else self._planner.chosen

    @property
    def total(self) -> int | None:
        """Samples in the current epoch, those left out included, where that is known."""
        return None if self._planner is None else self._planner.total

    def generators(self) -> list[torch.Generator]:
        """The user's own generators that the loader and its sampler draw from."""
        sampler = getattr(self.loader, "sampler", None)
        found = [getattr(part, "generator", None) for part in (self.loader, sampler)]
        return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())

    def state_dict(self) -> Any:
        """The state of a loader that keeps its own (torchdata's ``StatefulDataLoader``), else ``None``."""
        kinds = [kind.__name__ for kind in type(self.loader).__mro__]
        return self.loader.state_dict() if "StatefulDataLoader" in kinds else None

    def open(self, choose: Choice | None, skip: int, state: Any = None) -> Iterator[Given]:
        """Start an epoch with the samples that ``choose`` leaves, after its first ``skip`` batches."""
        if state is not None:
            self.loader.load_state_dict(state)
            return self._given(iter(self.loader))
        planner, workers = self._planner, getattr(self.loader, "num_workers", 0)
        if planner is not None:
            planner.choose, planner.skip = choose, 0 if workers else skip
            planner.issued.clear()
            planner.forget()
            skip = skip if workers else 0
        source = iter(self._copy)
        if planner is not None and planner.skip:
            planner.prepare()  # the sampler draws while the random state is that of the epoch's start
        for _ in range(skip):
            next(source, None)
            if planner is not None:
                planner.issued.popleft()
        return self._given(source)

    def _given(self, source: Iterator[Any]) -> Iterator[Given]:
        while True:
            try:
                batch = next(source)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" in str(error) and "exited unexpectedly" in str(error):
                    raise _dead_worker(error) from error
                raise
            indices = None
            if isinstance(batch, Sample):
                indices, batch = torch.as_tensor(batch.index, dtype=torch.int64), batch.value
            if self._planner is not None:
                indices = torch.tensor(self._planner.issued.popleft(), dtype=torch.int64)
            yield Given(batch, batches.length(batch, self.batch_size), indices)
            del batch


def batching(loader: Any) -> tuple[int | None, bool]:
    """The loader's own batch size, where it tells one, and whether it drops a short last batch."""
    sampler = getattr(loader, "batch_sampler", None)
    size = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
    return size, bool(getattr(loader, "drop_last", False) or getattr(sampler, "drop_last", False))


def _can_plan(loader: Any) -> bool:
    return (
        type(loader) is DataLoader
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and hasattr(loader.sampler, "__len__")
        and getattr(loader, "in_order", True)
    )


def _copied(loader: DataLoader[Any], planner: _Planner) -> DataLoader[Any]:
    names = ["num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "generator"]
    names += ["multiprocessing_context", "prefetch_factor", "persistent_workers", "in_order"]
    options = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    return DataLoader(loader.dataset, batch_sampler=planner, **options)


def _dead_worker(error: RuntimeError) -> StateError:
    return StateError(
        f"a worker process of the wrapped DataLoader died ({error})",
        "workers that live until the epoch ends",
        "out of memory (the kernel killed it), too little shared memory, or a crash in native code",
        "lower num_workers or batch_size, enlarge /dev/shm, or use num_workers=0 to see the crash itself",
    )
