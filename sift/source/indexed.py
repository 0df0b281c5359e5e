"""Samples that carry their index in the dataset, for loaders that do not reveal it otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, IterableDataset

from loopwise import validate
from loopwise.errors import InputError

NO_INDEX = (
    "the wrapped loader is not a plain DataLoader over a map-style dataset, so samples have no index",
    "wrap the dataset: DataLoader(Indexed(dataset), ...) with Indexed from loopwise.sift; samples of a stream can only be "
    "scored: loss=function, with def function(model, batch)",
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
