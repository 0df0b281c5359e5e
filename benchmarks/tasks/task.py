"""Task of a benchmark: data in three parts, a model, a loss for each sample, an optimizer and a budget."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

FOLDER = Path(__file__).parent.parent / ".cache" / "data"
Pair = tuple[torch.Tensor, torch.Tensor]
CLASS_LOSS = nn.CrossEntropyLoss(reduction="none")


class Samples(Dataset[Pair]):
    """Inputs and targets, fetched a batch at a time; ``prepare`` distorts the inputs at each access.

    A fetched batch is complete, so the loader's ``collate_fn`` is ``as_is``.
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        targets: torch.Tensor,
        prepare: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.inputs, self.targets, self.prepare = inputs, targets, prepare

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitems__(self, indices: list[int]) -> Pair:
        chosen = torch.tensor(indices)
        inputs = self.inputs[chosen]
        return self.prepare(inputs) if self.prepare else inputs, self.targets[chosen]

    def __getitem__(self, index: int) -> Pair:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def first(self, count: int) -> Samples:
        return Samples(self.inputs[:count], self.targets[:count], self.prepare)


def as_is(batch: Pair) -> Pair:
    return batch


class Data(NamedTuple):
    """Training samples and held-out samples: ``valid`` to choose settings by, ``test`` to report."""

    train: Samples
    valid: Pair
    test: Pair


def right(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return 1 for each sample whose class is recognised, else 0."""
    return (output.argmax(1) == target).float()


@dataclass(frozen=True, kw_only=True)
class Task:
    """Training task with its budget, the same for every method; by default one of classes."""

    name: str
    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = CLASS_LOSS
    """From output and target to one loss a sample, shape (batch,)."""
    values: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = right
    """From output and target to the metric of each sample; the metric is their mean."""
    metric: str = "accuracy"
    higher: bool = True
    """Whether more of the metric is better."""
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    batch_size: int
    epochs: int
    """Passes of the plain loader, which give the number of samples for every method."""


def cached(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of ``.cache/data/<name>.npz``, which the first call makes."""
    path = FOLDER / f"{name}.npz"
    if not path.exists():
        arrays: dict[str, Any] = make()
        FOLDER.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(own, **arrays)
        os.replace(own, path)
    with np.load(path) as arrays:
        return {key: arrays[key] for key in arrays.files}


def strided_network(sides: Iterable[tuple[int, int, int]], classes: int) -> nn.Module:
    """Return strided convolutions and a linear layer in channels_last, the faster layout for every method.

    Args:
        sides: channels in, channels out and side of the kernel of each convolution; the last one has 64 channels and
            leaves four places.
        classes: number of outputs.
    """
    layers: list[nn.Module] = []
    for inputs, outputs, side in sides:
        convolution = nn.Conv2d(inputs, outputs, side, stride=2, padding=side // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4, classes))
    return model.to(memory_format=torch.channels_last)
