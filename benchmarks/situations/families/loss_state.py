"""Situations with state in the loss: weights, buffers, counters, closures, global values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..parts import CLASSES, F, mlp, rows, sgd, train
from ..situation import Run, situation

TEMPERATURE = [1.0]
"""A schedule in a global value, as scripts have it."""


def with_loss(run: Run, loss: Any, width: int = 16) -> Any:
    """Train a model and the weights of its loss."""
    model, criterion = run.model(mlp(classes=width)), run.model(loss)
    step = run.step(model, criterion, sgd(model, criterion))
    for batch in rows():
        step(batch)
    return criterion


@situation()
def arcface(run: Run) -> None:
    """Train a loss that holds the weights of the classes."""

    class ArcFace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(CLASSES, 16))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            angle = F.linear(F.normalize(x), F.normalize(self.weight)).clamp(-0.999, 0.999).acos()
            return F.cross_entropy(8 * (angle + 0.2 * F.one_hot(y, CLASSES)).cos(), y)

    with_loss(run, ArcFace())


@situation(slow=True)
def clip_temperature(run: Run) -> None:
    """Train a contrastive loss with its temperature, a scalar."""

    class Contrastive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            a, b = (F.normalize(half) for half in x.chunk(2, 1))
            return F.cross_entropy(self.scale.exp() * a @ b.T, torch.arange(len(x)))

    with_loss(run, Contrastive())


@situation(slow=True)
def center_loss(run: Run) -> None:
    """Train with a loss that moves centres in a buffer and counts its calls."""

    class Center(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centers", torch.zeros(CLASSES, 16))
            self.head, self.calls, self.history = nn.Linear(16, CLASSES), 0, []

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            self.history.append(self.calls)
            with torch.no_grad():
                self.centers[y] = 0.9 * self.centers[y] + 0.1 * x
            return F.cross_entropy(self.head(x), y) + 0.1 * (x - self.centers[y]).square().mean()

    loss = with_loss(run, Center())
    run.keep(calls=loss.calls, history=loss.history)


@situation()
def counter_in_closure(run: Run) -> None:
    """Warm up the loss by a counter that its closure holds."""
    model, count = run.model(mlp()), 0

    def warmed(model: nn.Module, batch: Any) -> torch.Tensor:
        nonlocal count
        count += 1
        return min(1.0, count / 10) * F.cross_entropy(model(batch[0]), batch[1])

    step = run.step(model, warmed, sgd(model))
    for batch in rows():
        step(batch)
    run.keep(count=count)


@situation(slow=True)
def lists_in_closure(run: Run) -> None:
    """Weight the classes by a running count in a tensor and log losses into a list, both of the closure."""
    model, seen, log = run.model(mlp()), torch.ones(CLASSES), []

    def weighted(model: nn.Module, batch: Any) -> torch.Tensor:
        seen.add_(torch.bincount(batch[1], minlength=CLASSES))
        loss = F.cross_entropy(model(batch[0]), batch[1], seen.sum() / seen / CLASSES)
        log.append(loss.detach())
        return loss

    step = run.step(model, weighted, sgd(model))
    for batch in rows():
        step(batch)
    run.keep(seen=seen, logged=len(log), log=torch.stack(log))


@situation()
def global_schedule(run: Run) -> None:
    """Change a global value that the loss reads, between batches and in the loss."""
    model = run.model(mlp())
    TEMPERATURE[0] = 1.0

    def softened(model: nn.Module, batch: Any) -> torch.Tensor:
        TEMPERATURE[0] *= 1.05
        return F.cross_entropy(model(batch[0]) / TEMPERATURE[0], batch[1])

    step = run.step(model, softened, sgd(model))
    for batch in rows():
        step(batch)
        TEMPERATURE[0] *= 0.97
    run.keep(temperature=TEMPERATURE[0])


class Logged:
    """Counts of the class, which all instances share."""

    calls = 0
    recent: list[float] = []  # noqa: RUF012  # shared by all instances


def scaled(model: nn.Module, batch: Any) -> torch.Tensor:
    """Return a loss that the class's counter and the function's own attribute scale."""
    Logged.calls += 1
    scaled.calls += 1  # type: ignore[attr-defined]
    share = min(1.0, (Logged.calls + scaled.calls) / 30)  # type: ignore[attr-defined]
    return share * F.cross_entropy(model(batch[0]), batch[1])


@situation(slow=True)
def attributes_of_class_and_function(run: Run) -> None:
    """Warm up by counters in an attribute of a class and in one of the loss function."""
    Logged.calls = scaled.calls = 0  # type: ignore[attr-defined]
    train(run, mlp(), loss=scaled)
    run.keep(calls=(Logged.calls, scaled.calls))  # type: ignore[attr-defined]


@situation(slow=True)
def default_argument(run: Run) -> None:
    """Keep the latest losses in a default argument of the loss."""

    def remembering(model: nn.Module, batch: Any, recent: list[Any] = []) -> torch.Tensor:  # noqa: B006
        loss = F.cross_entropy(model(batch[0]), batch[1])
        recent.append(loss.detach())
        return loss / torch.stack(recent[-3:]).mean()

    train(run, mlp(), loss=remembering)
    run.keep(count=len(remembering.__defaults__[0]))  # type: ignore[index]


@situation()
def slots(run: Run) -> None:
    """Keep a running mean and a counter in an object with ``__slots__``."""

    class Running:
        __slots__ = ("count", "mean")

        def __init__(self) -> None:
            self.count, self.mean = 0, torch.zeros(8)

    running = Running()

    def centred(model: nn.Module, batch: Any) -> torch.Tensor:
        running.count += 1
        running.mean.lerp_(batch[0].mean(0), 1 / running.count)
        return F.cross_entropy(model(batch[0] - running.mean.clone()), batch[1])

    train(run, mlp(), loss=centred)
    run.keep(count=running.count, mean=running.mean)


@situation()
def unlabelled_batches(run: Run) -> None:
    """Take a batch without labels from a generator inside the loss, as semi-supervised training does."""
    unlabelled = (x for x, _ in rows(60, seed=9))

    def consistent(model: nn.Module, batch: Any) -> torch.Tensor:
        x = next(unlabelled)
        return F.cross_entropy(model(batch[0]), batch[1]) + 0.1 * F.mse_loss(
            model(x), model(1.1 * x).detach()
        )

    train(run, mlp(), loss=consistent)
    run.keep(left=sum(1 for _ in unlabelled))
