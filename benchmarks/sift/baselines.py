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

from .training import Budget

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
        self, loader: DataLoader[Any], model: nn.Module, losses: Losses, budget: Budget, seed: int
    ) -> None:
        self.loader, self.model, self.losses = loader, model, losses
        self.beta, self.history = 0.5, 1000
        self.delay = min(1000, budget.updates // 10)
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
        budget: Budget,
        seed: int,
        select: Callable[..., Batch] = select_using_loss,
    ) -> None:
        self.loader, self.model, self.losses, self.budget = loader, model, losses, budget
        self.select = select
        np.random.seed(seed)

    def _loss(self, output: torch.Tensor, target: torch.Tensor, reduction: str = "none") -> torch.Tensor:
        return self.losses(output, target)

    def __iter__(self) -> Iterator[Batch]:
        device = next(self.model.parameters()).device
        for number, (inputs, targets) in enumerate(self.loader):
            if self.start <= self.budget.progress < self.end and (number + 1) % self.interrupt:
                inputs, targets = inputs.to(device), targets.to(device)
                inputs, targets = self.select(inputs, targets, self.model, self._loss, keep=self.keep)
            yield inputs, targets


class InfoBatch:
    """InfoBatch with its defaults: r = 0.5, delta = 0.875.

    A sample whose last loss is below the mean is left out of the pass with probability r, or else has the weight
    1 / (1 - r).  After the share delta of the training, all samples are used.  Scores begin at 3, as in infobatch.py.
    """

    prune, delta, first = 0.5, 0.875, 3.0

    def __init__(
        self, loader: DataLoader[Any], model: nn.Module, losses: Losses, budget: Budget, seed: int
    ) -> None:
        self.loader, self.budget = loader, budget
        self.scores = torch.full((len(loader.dataset),), self.first)  # type: ignore[arg-type]
        self.draws = torch.Generator().manual_seed(seed)
        self.current = torch.empty(0, dtype=torch.int64)
        self.weights = torch.ones(len(self.scores))

    def __iter__(self) -> Iterator[Batch]:
        order, self.weights = order_of(self.loader), torch.ones(len(self.scores))
        if self.budget.progress < self.delta:
            easy = (self.scores < self.scores.mean()).nonzero()[:, 0]
            easy = easy[torch.randperm(len(easy), generator=self.draws)]
            stay = int((1 - self.prune) * len(easy))
            self.weights[easy[:stay]] = 1 / (1 - self.prune)
            self.weights[easy[stay:]] = 0
            order = order[self.weights[order] > 0]
        for chosen, (inputs, targets) in fetched(self.loader, order):
            self.current = chosen
            yield inputs, targets, self.weights_of(chosen)

    def weights_of(self, chosen: torch.Tensor) -> torch.Tensor:
        return self.weights[chosen]

    def observe(self, losses: torch.Tensor) -> None:
        self.scores[self.current] = losses.cpu()


class BatchScores(InfoBatch):
    """Batch Loss Score under InfoBatch's rule: the score is a moving average of the mean losses of a sample's batches.

    A sample's score becomes 0.7 of it plus 0.3 of the batch's mean loss, and begins at 0.  The mean loss of a batch is
    multiplied by the mean weight of its samples, as no loss of a sample is known.
    """

    first, smoothing = 0.0, 0.7

    def weights_of(self, chosen: torch.Tensor) -> torch.Tensor:
        return self.weights[chosen].mean().expand(len(chosen))

    def observe(self, losses: torch.Tensor) -> None:
        past = self.scores[self.current]
        self.scores[self.current] = self.smoothing * past + (1 - self.smoothing) * losses.mean().cpu()


class SeTa(InfoBatch):
    """SeTa with the values of its CIFAR script: 0.1 left out at random, 5 groups by loss, a window of 4 of them.

    The groups are the clusters of a k-means of the last losses.  The window goes from easy to hard by one group a pass,
    and begins again.  The first pass has all groups, and after the share delta of the training all but the random tenth.
    Here k-means begins at quantiles of the losses instead of random samples.
    """

    prune, groups, window = 0.1, 5, 4
    passed = 0
    """Number of passes so far."""

    def __iter__(self) -> Iterator[Batch]:
        order = order_of(self.loader)
        order = order[torch.randperm(len(order), generator=self.draws)[: int((1 - self.prune) * len(order))]]
        if 0 < self.budget.progress < self.delta:
            group = clusters(self.scores[order], self.groups)
            start = self.passed % (self.groups - self.window + 1)
            order = order[(group >= start) & (group < start + self.window)]
        self.passed += 1
        for chosen, (inputs, targets) in fetched(self.loader, order):
            self.current = chosen
            yield inputs, targets


def clusters(values: torch.Tensor, count: int, rounds: int = 100) -> torch.Tensor:
    """Return the cluster of each value by k-means on a line, the lowest first: int64 of the same shape."""
    centers = values.quantile((torch.arange(count) + 0.5) / count)
    for _ in range(rounds):
        group = torch.bucketize(values, (centers[1:] + centers[:-1]) / 2)
        sizes = torch.bincount(group, minlength=count)
        means = torch.zeros(count).index_add_(0, group, values) / sizes.clamp_min(1)
        moved = torch.where(sizes > 0, means, centers).sort().values
        if torch.equal(moved, centers):
            break
        centers = moved
    return torch.bucketize(values, (centers[1:] + centers[:-1]) / 2)


class OrderDP(InfoBatch):
    """OrderDP with the values of its CIFAR-100 script: a random 0.8 of the samples, and of them the top 0.375 by last loss.

    Samples begin with a score of 3, so the first passes are random where losses are below 3.
    """

    drawn, top = 0.8, 0.375

    def __iter__(self) -> Iterator[Batch]:
        order = order_of(self.loader)
        order = order[torch.randperm(len(order), generator=self.draws)[: int(self.drawn * len(order))]]
        order = order[self.scores[order].topk(int(self.top * len(order))).indices]
        order = order[torch.randperm(len(order), generator=self.draws)]
        for chosen, (inputs, targets) in fetched(self.loader, order):
            self.current = chosen
            yield inputs, targets


class Uniform:
    """Random half of the samples in each pass, as large a share as ``keep=0.5`` asks for."""

    keep = 0.5

    def __init__(self, loader: DataLoader[Any], seed: int) -> None:
        self.loader, self.draws = loader, torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Batch]:
        order = order_of(self.loader)
        taken = torch.randperm(len(order), generator=self.draws)[: round(self.keep * len(order))]
        for _, batch in fetched(self.loader, order[taken.sort().values]):
            yield batch
