"""Situations with sparse gradients, complex weights, and weights of other precisions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..parts import (
    CLASSES,
    F,
    Transformer,
    adamw,
    batches,
    classes,
    conv,
    cross_entropy,
    images,
    mlp,
    rows,
    sgd,
    tokens,
    train,
)
from ..situation import Run, situation


def words(run: Run, sparse_bag: bool, make: Any) -> None:
    """Train a sparse embedding with a layer behind it.

    Args:
        run: the run.
        sparse_bag: take an ``EmbeddingBag``.
        make: returns the optimizer of the model.
    """
    kind = nn.EmbeddingBag if sparse_bag else nn.Embedding
    head = nn.Linear(6 if sparse_bag else 36, CLASSES)
    model = run.model(nn.Sequential(kind(50, 6, sparse=True), nn.Flatten(), head))
    step = run.step(model, cross_entropy(), make(model))
    for batch in batches(lambda g: (torch.randint(0, 50, (16, 6), generator=g), classes(16, g))):
        step(batch)


@situation()
def sparse_sgd(run: Run) -> None:
    """Train ``EmbeddingBag(sparse=True)`` by SGD without momentum."""
    words(run, True, lambda model: torch.optim.SGD(model.parameters(), 0.2))


@situation()
def sparse_adam(run: Run) -> None:
    """Train ``Embedding(sparse=True)`` by SparseAdam; the layer behind it stays as it is."""
    words(run, False, lambda model: torch.optim.SparseAdam(model[0].parameters(), 0.05))


@situation()
def complex_weights(run: Run) -> None:
    """Train complex weights between Fourier transforms by Adam."""

    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(0.3 * torch.randn(4, 4, 5, dtype=torch.cfloat))
            self.before, self.after = nn.Conv1d(1, 4, 1), nn.Conv1d(4, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.before(x)
            waves = torch.einsum("bix,iox->box", torch.fft.rfft(h)[..., :5], self.weight)
            return self.after(F.gelu(torch.fft.irfft(waves, n=x.shape[-1]) + h))

    model = run.model(Fourier())
    step = run.step(model, nn.MSELoss(), torch.optim.Adam(model.parameters(), 5e-3))
    for batch in batches(lambda g: tuple(torch.randn(4, 1, 16, generator=g) for _ in range(2))):
        step(batch)


def cast(run: Run, net: Any, data: list[Any], dtype: torch.dtype, lr: float = 0.05) -> None:
    """Train a model with weights and inputs of a dtype."""
    model = run.model(net.to(dtype))
    step = run.step(model, cross_entropy(), sgd(model, lr=lr))
    for x, y in data:
        step((x.to(dtype) if x.is_floating_point() else x, y))


@situation()
def float64_model(run: Run) -> None:
    """Train a model in float64."""
    cast(run, mlp(), rows(), torch.float64)


@situation("channels_last captured", slow=True)
def float64_convolutions(run: Run) -> None:
    """Train convolutions in float64 under a channels_last plan."""
    cast(run, conv(), images(), torch.float64)


@situation(slow=True)
def bfloat16_model(run: Run) -> None:
    """Train a model whose weights are bfloat16."""
    cast(run, mlp(), rows(), torch.bfloat16)


@situation(slow=True)
def bfloat16_transformer(run: Run) -> None:
    """Train a transformer in bfloat16, with the rewrites of loss head and attention."""
    cast(run, Transformer(), tokens(), torch.bfloat16)


@situation(slow=True)
def half_model(run: Run) -> None:
    """Train a model whose weights are float16."""
    cast(run, mlp(), rows(), torch.float16)


@situation(slow=True)
def mixed_weights(run: Run) -> None:
    """Train a body in bfloat16 below a head in float32."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(classes=12).bfloat16(), nn.Linear(12, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(x.bfloat16()).float())

    train(run, Mixed(), multiplies=torch.bfloat16)


@situation(slow=True)
def autocast_inside(run: Run) -> None:
    """Train a model that casts its own forward pass to bfloat16 by autocast."""

    class Automatic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(x)

    train(run, Automatic(), make=adamw, multiplies=torch.bfloat16)


@situation(slow=True)
def cast_in_the_middle(run: Run) -> None:
    """Bring the model to float64 after eight batches, with a new optimizer and a new step."""
    model = run.model(mlp())
    step = run.step(model, cross_entropy(), sgd(model))
    for number, (x, y) in enumerate(rows()):
        if number == 8:
            model.double()
            step = run.step(model, cross_entropy(), sgd(model))
        step((x.to(model[0].weight.dtype), y))


@situation(slow=True)
def integer_buffers(run: Run) -> None:
    """Train a model with buffers of integers and booleans that forward updates."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()
            self.register_buffer("seen", torch.zeros(CLASSES, dtype=torch.long))
            self.register_buffer("alive", torch.ones(8, dtype=torch.bool), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.net(x * self.alive)
            self.seen += torch.bincount(out.argmax(1), minlength=CLASSES)
            self.alive = (x.abs().amax(0) > 1.5) | self.alive.roll(1)
            return out

    train(run, Counting())


@situation(slow=True)
def autocast_around(run: Run) -> None:
    """Call the step inside the user's own autocast."""
    model = run.model(mlp(), torch.bfloat16)
    step = run.step(model, cross_entropy(), adamw(model))
    for batch in rows():
        with torch.autocast("cpu", torch.bfloat16):
            step(batch)
