"""Situations with state in attributes of the model."""

from __future__ import annotations

import collections
import copy

import numpy as np
import torch
from torch import nn

from ..parts import CLASSES, F, adamw, cross_entropy, mlp, rows, sgd, train
from ..situation import Run, situation
from .draws import VAE, own


@situation()
def hidden_state(run: Run) -> None:
    """Carry the hidden state of a GRU cell over the batches in an attribute."""

    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head, self.hidden = nn.GRUCell(8, 16), nn.Linear(16, CLASSES), None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.hidden = self.cell(x, None if self.hidden is None else self.hidden.detach())
            return self.head(self.hidden)

    model = train(run, Stateful())
    run.keep(hidden=model.hidden)


class Annealed(VAE):
    """Variational autoencoder that counts its forward passes to warm up the divergence."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return super().forward(x) * min(1.0, self.passes / 15)


@situation()
def counter_in_attribute(run: Run) -> None:
    """Warm up a loss by a counter in an attribute of the model."""
    model = train(run, Annealed(), loss=own, make=adamw)
    run.keep(passes=model.passes)


@situation(slow=True)
def attribute_set_by_loop(run: Run) -> None:
    """Set a temperature of the model before each batch."""

    class Tempered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.temperature = mlp(), 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x) / self.temperature

    model = run.model(Tempered())
    step = run.step(model, cross_entropy(), sgd(model))
    for number, batch in enumerate(rows()):
        model.temperature = 1.0 + 0.1 * number
        step(batch)


@situation()
def queue_of_keys(run: Run) -> None:
    """Keep a queue of keys and a momentum encoder, as MoCo does."""

    class Momentum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.online, self.pointer = mlp(classes=8), 0
            self.slow = copy.deepcopy(self.online).requires_grad_(False)
            self.register_buffer("queue", F.normalize(torch.randn(48, 8)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                for slow, fast in zip(self.slow.parameters(), self.online.parameters(), strict=True):
                    slow.lerp_(fast, 0.01)
                keys = F.normalize(self.slow(x + 0.01))
            query = F.normalize(self.online(x))
            positive, negative = (query * keys).sum(1, keepdim=True), query @ self.queue.clone().T
            self.queue[self.pointer : self.pointer + len(x)] = keys
            self.pointer = (self.pointer + len(x)) % 48
            out = torch.cat([positive, negative], 1) / 0.2
            return F.cross_entropy(out, torch.zeros(len(x), dtype=torch.long))

    model = run.model(Momentum())
    step = run.step(model, own, sgd(model.online))
    for batch in rows():
        step(batch)
    run.keep(pointer=model.pointer)


@situation(slow=True)
def recent_outputs(run: Run) -> None:
    """Keep the latest outputs in a ``deque`` of the model, which the loss reads."""

    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.recent, self.counts = mlp(), collections.deque(maxlen=3), collections.Counter()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.net(x)
            mean = torch.stack([*self.recent, out.detach().mean(0)]).mean(0)
            self.recent.append(out.detach().mean(0))
            self.counts["passes"] += 1
            return out - 0.5 * mean

    model = train(run, Remembering())
    run.keep(passes=model.counts["passes"], recent=torch.stack([*model.recent]))


@situation(slow=True)
def numpy_state(run: Run) -> None:
    """Keep a running mean of the inputs in a NumPy array and in an object of the user's own class."""

    class Statistics:
        def __init__(self) -> None:
            self.mean, self.count = np.zeros(8, np.float32), 0

    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.statistics = mlp(), Statistics()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.statistics.count += 1
            self.statistics.mean += 0.1 * (x.mean(0).numpy() - self.statistics.mean)
            return self.net(x - torch.from_numpy(self.statistics.mean.copy()))

    model = train(run, Normalised())
    run.keep(mean=torch.from_numpy(model.statistics.mean), count=model.statistics.count)


@situation(slow=True)
def state_made_later(run: Run) -> None:
    """Make a running mean in the second pass and move it in place from then on; freeze a layer after twelve batches."""

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.means = mlp(), {}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mean = self.means.get("inputs")
            if mean is None and "first" in self.means:
                mean = self.means["inputs"] = torch.zeros(8)
            self.means["first"] = True
            if mean is None:
                return self.net(x)
            mean.lerp_(x.mean(0), 0.2)
            return self.net(x - mean.clone())

    model = run.model(Lazy())
    step = run.step(model, cross_entropy(), sgd(model))
    for number, batch in enumerate(rows()):
        model.net[0].requires_grad_(number < 12)
        step(batch)
    run.keep(mean=model.means["inputs"])
