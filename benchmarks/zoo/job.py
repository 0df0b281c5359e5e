"""Small training on real data, made of parts that faults replace."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn

F = nn.functional
Batch = tuple[torch.Tensor, torch.Tensor]


@functools.cache
def digits() -> tuple[Batch, Batch]:
    """Return training and validation images of 8 x 8 with mean 0 and deviation 1, and their classes."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)
    x, y = (x - x.mean()) / x.std(), torch.tensor(data.target)
    return (x[:1400], y[:1400]), (x[1400:], y[1400:])


@functools.cache
def text() -> torch.Tensor:
    """Return bytes of the standard library's source."""
    return torch.frombuffer(bytearray(Path(contextlib.__file__).read_bytes()), dtype=torch.uint8).long() % 128


# -- models -----------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def cnn() -> nn.Module:
    def block(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]

    head = [nn.MaxPool2d(2), *block(8, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
    return nn.Sequential(nn.Unflatten(1, (1, 8)), *block(1, 8), *head)


class Recurrent(nn.Module):
    """Recurrent network that reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.act, self.head = nn.GRU(8, 32, batch_first=True), nn.Tanh(), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.rnn(x)[0][:, -1]))


class Transformer(nn.Module):
    """Transformer that predicts the next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(128, 32), nn.Parameter(torch.zeros(24, 32))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = self.embed(x) + self.place[: x.shape[1]]
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(self.norm(x)).transpose(1, 2)


MODELS = {"mlp": mlp, "cnn": cnn, "rnn": Recurrent, "transformer": Transformer}


# -- trainings --------------------------------------------------------------------------------------


@dataclass
class Job:
    """Training whose parts faults replace."""

    kind: str
    seed: int
    steps: int = 80
    model: nn.Module = field(init=False)
    optimizer: Callable[[Any], Any] = lambda parameters: torch.optim.AdamW(parameters, lr=2e-3)
    criterion: Callable[..., torch.Tensor] = F.cross_entropy
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None
    autocast: torch.dtype | None = None
    evaluations: int = 0
    """Training steps between two evaluations; 0: none."""
    samples: int = 1400
    dtype: torch.dtype = torch.float32
    """Of the images."""
    name: str = ""
    """Of the fault."""

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = MODELS[self.kind]()
        self._draws = torch.Generator().manual_seed(self.seed)

    # what faults replace

    def batch(self, step: int) -> Batch:
        if self.kind == "transformer":
            starts = torch.randint(len(text()) - 25, (16, 1), generator=self._draws)
            window = text()[starts + torch.arange(25)]
            return window[:, :-1], window[:, 1:]
        (x, y), _ = digits()
        chosen = torch.randint(min(len(x), self.samples), (32,), generator=self._draws)
        return x[chosen].to(self.dtype), y[chosen]

    def made(self) -> tuple[nn.Module, Any]:
        """Return the model in training mode and its optimizer."""
        return self.model, self.optimizer(self.model.parameters())

    def before_backward(self, optimizer: Any, step: int) -> None:
        optimizer.zero_grad()

    def backward(self, loss: torch.Tensor, step: int) -> None:
        loss.backward()

    def update(self, optimizer: Any, step: int) -> None:
        optimizer.step()

    def set_mode(self, model: nn.Module, training: bool) -> None:
        model.train(training)

    # the loop

    def run(self, folder: str, save: int = 1) -> Any:
        """Train under a ``Watch`` with all rules, and return the closed ``Watch``."""
        from loopwise.debug import Watch, every

        model, optimizer = self.made()
        forward = self.forward or model
        watch = Watch(
            model,
            optimizer,
            run=folder,
            save={"train": every(save), "eval": every(1)},
            on_finding=lambda _: None,
            trap=False,  # rules are looked at here, and what they find in what was saved
            profile=False,
        )
        with watch:
            self.loop(model, optimizer, forward, watch, self.backward)
        assert not watch.counts["failed"], watch.counts
        return watch

    def loop(self, model: nn.Module, optimizer: Any, forward: Any, watch: Any, backward: Any) -> None:
        """Train and evaluate.

        Args:
            model, optimizer: what ``made`` returned.
            forward: forward pass of the model.
            watch: a ``Watch``, or ``Unwatched``.
            backward: called with the loss and the step.
        """
        for step in range(self.steps):
            watch.step(loss=self.trained_on(self.batch(step), step, model, optimizer, forward, backward))
            if self.evaluations and step % self.evaluations == self.evaluations - 1:
                self.evaluate(model, forward, watch)

    def trained_on(
        self, batch: Batch, step: int, model: nn.Module, optimizer: Any, forward: Any, backward: Any
    ) -> torch.Tensor:
        """Train on a batch, and return its loss."""
        self.set_mode(model, True)
        x, y = batch
        with torch.autocast("cpu", self.autocast) if self.autocast else contextlib.nullcontext():
            loss = self.criterion(forward(x), y)
        self.before_backward(optimizer, step)
        backward(loss, step)
        self.update(optimizer, step)
        return loss

    def evaluate(self, model: nn.Module, forward: Any, watch: Any) -> None:
        self.set_mode(model, False)
        x, y = digits()[1]
        x = x.to(self.dtype)
        with watch.mode("eval"), torch.no_grad():
            watch.step(loss=self.criterion(forward(x), y))


class Unwatched:
    """Stands for the ``Watch`` of a training that has none."""

    def step(self, **scalars: torch.Tensor) -> None:
        """Do nothing."""

    def mode(self, mode: str) -> contextlib.AbstractContextManager[None]:
        """Return a context that does nothing."""
        return contextlib.nullcontext()


class WithForward(nn.Module):
    """Model whose forward pass is the one that a fault put in its place."""

    def __init__(self, inner: nn.Module, run: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.inner, self.run = inner, run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)


def copied(model: nn.Module) -> nn.Module:
    """Return another model with the same weights, as loading a model makes it."""
    return copy.deepcopy(model)


def accumulated(job: Job, count: int, divided: bool = True) -> None:
    """Accumulate the gradients of ``count`` batches for one update."""
    job.before_backward = lambda optimizer, step: optimizer.zero_grad() if step % count == 0 else None
    job.update = lambda optimizer, step: optimizer.step() if step % count == count - 1 else None
    if divided:
        job.backward = lambda loss, step: (loss / count).backward()


def scheduled(
    job: Job,
    make: Callable[[Any], Any],
    update: Callable[[Any, Any, int], Any] = lambda optimizer, schedule, _: (
        optimizer.step(),
        schedule.step(),
    ),
) -> None:
    """Train with a learning-rate scheduler.

    Args:
        make: called with the optimizer.
        update: called with optimizer, scheduler and step.
    """
    made, schedules = job.made, []

    def both() -> tuple[nn.Module, Any]:
        model, optimizer = made()
        schedules.append(make(optimizer))
        return model, optimizer

    job.made = both
    job.update = lambda optimizer, step: update(optimizer, schedules[-1], step)
