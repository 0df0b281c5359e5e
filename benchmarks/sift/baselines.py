"""Published methods of selecting training samples, reimplemented without Loopwise.

Each class wraps a plain ``DataLoader`` whose ``collate_fn`` leaves a fetched batch as it is.  It follows the order of the
sampler, and yields ``(input, target)`` or ``(input, target, weights)``.  The training loop calls ``observe(losses)`` with
the losses of each step if a class has this method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Batch = tuple[torch.Tensor, ...]


def fetched(loader: DataLoader[Any], indices: torch.Tensor) -> Iterator[tuple[torch.Tensor, Any]]:
    """Yield the samples ``indices`` in batches of the loader's size, each with its indices."""
    for chosen in indices.split(loader.batch_size or 1):
        yield chosen, loader.dataset.__getitems__(chosen.tolist())  # type: ignore[attr-defined]


def order_of(loader: DataLoader[Any]) -> torch.Tensor:
    return torch.tensor(list(loader.sampler))


class PercentileRule:
    """Selection by the percentile of the loss, as in SageMaker smart sifting and Selective-Backprop.

    A sample is kept with probability (percentile of its loss among the last ``history`` losses) ** beta; kept samples
    gather into full batches.  SageMaker's defaults are a beta of 0.5 and 1,000 steps of delay; its history has no
    default, and its examples say 500.  Runs are so short here that ``delay`` is at most a tenth of the training, as the
    method would otherwise never select.  A sample is scored by an fp32 forward pass in evaluation mode, without gradient.
    """

    def __init__(
        self, loader: DataLoader[Any], model: nn.Module, losses: Losses, epochs: int, seed: int
    ) -> None:
        self.loader, self.model, self.losses = loader, model, losses
        self.beta, self.history = 0.5, 1000
        self.delay = min(1000, epochs * len(loader) // 10)
        self.past = torch.empty(0)
        self.draws = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Batch]:
        size, kept = self.loader.batch_size or 1, []
        for inputs, targets in self.loader:
            if self.delay > 0:
                self.delay -= 1
                yield inputs, targets
                continue
            chosen = self.choose(inputs, targets)
            kept.append((inputs[chosen], targets[chosen]))
            if sum(len(part) for _, part in kept) >= size:
                inputs, targets = (torch.cat(parts) for parts in zip(*kept, strict=True))
                kept = [(inputs[size:], targets[size:])]
                yield inputs[:size], targets[:size]
        inputs, targets = (torch.cat(parts) for parts in zip(*kept, strict=True)) if kept else ((), ())
        if len(inputs):
            yield inputs, targets

    @torch.no_grad()
    def choose(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.model.eval()
        device = next(self.model.parameters()).device
        losses = self.losses(self.model(inputs.to(device)), targets.to(device)).cpu()
        self.model.train()
        self.past = torch.cat([self.past, losses])[-self.history :]
        below = torch.searchsorted(self.past.sort().values, losses, right=True)
        chance = (below / len(self.past)) ** self.beta
        return torch.rand(len(losses), generator=self.draws) < chance


def select_using_loss(
    inputs: torch.Tensor, targets: torch.Tensor, model: nn.Module, loss: Any, keep: float
) -> Batch:
    """Select samples of one batch as Composer does: by the rank of the loss, without replacement.

    The forward pass is in training mode, as in Composer, so BatchNorm's statistics see the batch twice.
    """
    with torch.no_grad():
        losses = loss(model(inputs), targets, reduction="none")
    count = len(losses)
    chance = (np.arange(0.5, count) / count) ** (1 / keep - 1)
    picked = np.random.choice(count, int(keep * count), replace=False, p=chance / chance.sum())
    chosen = losses.argsort()[picked]
    return inputs[chosen], targets[chosen]


class SelectiveBackprop:
    """MosaicML Composer's SelectiveBackprop with its defaults; ``select`` may be Composer's own function.

    Between 50 % and 90 % of the training every second batch is halved, and the batch shrinks.
    """

    start, end, keep, interrupt = 0.5, 0.9, 0.5, 2

    def __init__(
        self,
        loader: DataLoader[Any],
        model: nn.Module,
        losses: Losses,
        epochs: int,
        seed: int,
        select: Callable[..., Batch] = select_using_loss,
    ) -> None:
        self.loader, self.model, self.losses, self.epochs = loader, model, losses, epochs
        self.select, self.epoch = select, 0
        np.random.seed(seed)

    def _loss(self, output: torch.Tensor, target: torch.Tensor, reduction: str = "none") -> torch.Tensor:
        return self.losses(output, target)

    def __iter__(self) -> Iterator[Batch]:
        device = next(self.model.parameters()).device
        for number, (inputs, targets) in enumerate(self.loader):
            done = (self.epoch + number / len(self.loader)) / self.epochs
            if self.start <= done < self.end and (number + 1) % self.interrupt:
                inputs, targets = inputs.to(device), targets.to(device)
                inputs, targets = self.select(inputs, targets, self.model, self._loss, keep=self.keep)
            yield inputs, targets
        self.epoch += 1


class InfoBatch:
    """InfoBatch with its defaults: r = 0.5, delta = 0.875.

    A sample whose last loss is below the mean is left out of the epoch with probability r, or else has the weight
    1 / (1 - r).  After the share delta of the epochs, all samples are used.  Scores begin at 3 and the first epoch has
    the number 1, as in infobatch.py.
    """

    prune, delta = 0.5, 0.875

    def __init__(
        self, loader: DataLoader[Any], model: nn.Module, losses: Losses, epochs: int, seed: int
    ) -> None:
        self.loader, self.epochs, self.epoch = loader, epochs, 0
        count = len(loader.dataset)  # type: ignore[arg-type]
        self.scores = torch.full((count,), 3.0)
        self.draws = torch.Generator().manual_seed(seed)
        self.current = torch.empty(0, dtype=torch.int64)

    def __iter__(self) -> Iterator[Batch]:
        self.epoch += 1
        order, weights = order_of(self.loader), torch.ones(len(self.scores))
        if self.epoch <= self.delta * self.epochs:
            easy = (self.scores < self.scores.mean()).nonzero()[:, 0]
            easy = easy[torch.randperm(len(easy), generator=self.draws)]
            stay = int((1 - self.prune) * len(easy))
            weights[easy[:stay]] = 1 / (1 - self.prune)
            weights[easy[stay:]] = 0
            order = order[weights[order] > 0]
        for chosen, (inputs, targets) in fetched(self.loader, order):
            self.current = chosen
            yield inputs, targets, weights[chosen]

    def observe(self, losses: torch.Tensor) -> None:
        self.scores[self.current] = losses.cpu()


class Uniform:
    """Random share of the samples in each epoch, as large as the share that sifting keeps."""

    def __init__(self, loader: DataLoader[Any], shares: list[float], seed: int) -> None:
        self.loader, self.shares, self.epoch = loader, shares, 0
        self.draws = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Batch]:
        order = order_of(self.loader)
        taken = torch.rand(len(order), generator=self.draws) < self.shares[self.epoch]
        self.epoch += 1
        for _, batch in fetched(self.loader, order[taken]):
            yield batch
