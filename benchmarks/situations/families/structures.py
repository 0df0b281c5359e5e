"""Situations with unusual structures of models: tied, checkpointed, parametrized, recurrent, and with branches."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..parts import (
    CLASSES,
    Classifier,
    F,
    Transformer,
    adamw,
    batches,
    batchnorm,
    classes,
    images,
    mlp,
    rows,
    sequences,
    tokens,
    train,
)
from ..situation import Run, situation


@situation(slow=True)
def tied_weights(run: Run) -> None:
    """Train a transformer whose output layer is its embedding."""
    train(run, Transformer(tied=True), tokens())


@situation(slow=True)
def one_layer_three_times(run: Run) -> None:
    """Train a model that calls one block three times."""

    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = mlp(16, 16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = x + 0.5 * self.block(x)
            return x

    train(run, Classifier(Repeated()))


class Checkpointed(nn.Module):
    """Blocks with dropout, computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.blocks = nn.ModuleList(nn.Sequential(mlp(16, 16, 16), nn.Dropout(0.3)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return x


@situation(slow=True)
def checkpointed(run: Run) -> None:
    """Train a model with activation checkpoints and dropout."""
    train(run, Classifier(Checkpointed(False)))


@situation()
def checkpointed_reentrant(run: Run) -> None:
    """Train a model with reentrant checkpoints and dropout."""
    train(run, Classifier(Checkpointed(True)))


@situation(slow=True)
def gru(run: Run) -> None:
    """Train a bidirectional GRU."""
    train(run, Recurrent(nn.GRU(8, 6, batch_first=True, bidirectional=True)), sequences())


@situation(slow=True)
def lstm(run: Run) -> None:
    """Train an LSTM of two layers."""
    train(run, Recurrent(nn.LSTM(8, 12, 2, batch_first=True)), sequences())


class Recurrent(nn.Module):
    """Recurrent net with a classifier on its last output."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@situation(slow=True)
def batch_norm(run: Run) -> None:
    """Train convolutions with BatchNorm."""
    train(run, batchnorm(), images())


@situation("channels_last captured")
def batch_norm_channels_last(run: Run) -> None:
    """Train convolutions with BatchNorm under a channels_last plan."""
    train(run, batchnorm(), images())


@situation("channels_last")
def already_channels_last(run: Run) -> None:
    """Train a model and images that the user brought into channels_last."""
    data = [(x.to(memory_format=torch.channels_last), y) for x, y in images()]
    train(run, batchnorm().to(memory_format=torch.channels_last), data)


@situation(slow=True)
def experts(run: Run) -> None:
    """Train a mixture of experts, whose forward pass branches on the data."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(16, 3), nn.ModuleList(mlp(16, 16, 16) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shares, chosen = self.gate(x).softmax(-1).max(-1)
            out = torch.zeros_like(x)
            for number, expert in enumerate(self.experts):
                places = (chosen == number).nonzero()[:, 0]
                if len(places):
                    out = out.index_add(0, places, expert(x[places]) * shares[places, None])
            return x + out

    train(run, Classifier(Experts()))


@situation(slow=True)
def own_function(run: Run) -> None:
    """Train a model with an ``autograd.Function`` of the user, a straight-through estimator."""

    class Sign(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x.sign()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * (ctx.saved_tensors[0].abs() < 1)

    class Binary(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return Sign.apply(x)

    train(run, Classifier(Binary()))


@situation()
def graph_of_nodes(run: Run) -> None:
    """Train a graph net that sums over edges by ``index_add``."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.message, self.head = nn.Linear(16, 8), nn.Linear(16, CLASSES)

        def forward(self, batch: Any) -> torch.Tensor:
            x, edges = batch
            out = F.silu(self.message(torch.cat([x[edges[0]], x[edges[1]]], 1)))
            return self.head(torch.cat([x, torch.zeros_like(x).index_add(0, edges[1], out)], 1))

    def make(g: torch.Generator) -> Any:
        edges = torch.randint(0, 12, (2, 30), generator=g)
        return (torch.randn(12, 8, generator=g), edges), classes(12, g)

    train(run, Graph(), batches(make), make=adamw)


@situation(slow=True)
def wide_layers(run: Run) -> None:
    """Train layers of 512 features on batches of 128 samples."""
    train(run, mlp(512), rows(size=128))


@situation(slow=True)
def many_layers(run: Run) -> None:
    """Train 30 residual layers."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)) for _ in range(30))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + F.gelu(layer(x))
            return x

    train(run, Classifier(Deep()))


@situation(slow=True)
def large_vocabulary(run: Run) -> None:
    """Train a transformer over 3,000 words, whose loss head takes several chunks."""
    train(run, Transformer(3000, layers=1), tokens(vocabulary=3000, size=8, length=64))
