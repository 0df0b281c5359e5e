"""Small models and batches that situations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .situation import Run

F = nn.functional
STEPS = 20
CLASSES = 5
Batches = list[tuple[torch.Tensor, torch.Tensor]]


def cross_entropy() -> nn.Module:
    return nn.CrossEntropyLoss()


def sgd(*modules: nn.Module, lr: float = 0.05, **options: Any) -> torch.optim.Optimizer:
    """Return SGD with momentum over the weights of all modules."""
    return torch.optim.SGD([p for module in modules for p in module.parameters()], lr, 0.9, **options)


def adamw(*modules: nn.Module, lr: float = 2e-3, **options: Any) -> torch.optim.Optimizer:
    """Return AdamW over the weights of all modules."""
    return torch.optim.AdamW([p for module in modules for p in module.parameters()], lr, **options)


def train(
    run: Run,
    net: nn.Module,
    data: list[Any] | None = None,
    loss: Any = None,
    make: Callable[..., torch.optim.Optimizer] = sgd,
    lr: float | None = None,
    **options: Any,
) -> Any:
    """Train a model on all batches by a step of the run's form, and return the model.

    Args:
        run: the run.
        net: the model.
        data: the batches; default: ``rows()``.
        loss: the loss; default: cross-entropy.
        make: returns the optimizer of a model.
        lr: learning rate, if it is not the optimizer's default here.
        options: arguments of the step, and ``multiplies`` of ``run.model``.
    """
    model = run.model(net, options.pop("multiplies", None))
    optimizer = make(model) if lr is None else make(model, lr=lr)
    step = run.step(model, loss or cross_entropy(), optimizer, **options)
    for batch in rows() if data is None else data:
        step(batch)
    return model


# -- models -----------------------------------------------------------------------------------------


def mlp(width: int = 24, inputs: int = 8, classes: int = CLASSES) -> nn.Sequential:
    layers = [nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def conv(width: int = 8) -> nn.Sequential:
    """Return a network of convolutions without normalisation."""
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, CLASSES))


def batchnorm(width: int = 8) -> nn.Sequential:
    """Return a network of convolutions with BatchNorm."""
    first = nn.Conv2d(
        3, width, 3, bias=False
    )  # a bias below BatchNorm would be moved by rounding errors alone
    layers = [first, nn.BatchNorm2d(width), nn.SiLU(), nn.Conv2d(width, width, 3), nn.SiLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, CLASSES))


class Block(nn.Module):
    """Transformer block with written-out attention, which a pass rewrites."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mix(self.before(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (q.shape[-1] ** -0.5)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.after(x))))


class Transformer(nn.Module):
    """Transformer from tokens (batch, positions) to logits (batch * positions, vocabulary)."""

    def __init__(self, vocabulary: int = 40, width: int = 16, layers: int = 2, tied: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.Sequential(*(Block(width, 2) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens)))).flatten(0, 1)


# -- batches ----------------------------------------------------------------------------------------


def batches(make: Callable[[torch.Generator], Any], count: int = STEPS, seed: int = 1) -> list[Any]:
    """Return batches that are equal in each call and leave the global random state alone."""
    draws = torch.Generator().manual_seed(seed)
    return [make(draws) for _ in range(count)]


def rows(count: int = STEPS, size: int = 16, width: int = 8, seed: int = 1) -> Batches:
    """Return batches of vectors and classes."""
    return batches(lambda g: (torch.randn(size, width, generator=g), classes(size, g)), count, seed)


def images(count: int = STEPS, size: int = 8, side: int = 8, seed: int = 1) -> Batches:
    """Return batches of images and classes."""
    return batches(lambda g: (torch.randn(size, 3, side, side, generator=g), classes(size, g)), count, seed)


def tokens(
    count: int = STEPS, size: int = 4, length: int = 8, vocabulary: int = 40, seed: int = 1
) -> Batches:
    """Return batches of tokens and their next tokens, the latter flat."""

    def make(g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        text = torch.randint(0, vocabulary, (size, length + 1), generator=g)
        return text[:, :-1].contiguous(), text[:, 1:].flatten()

    return batches(make, count, seed)


def sequences(count: int = STEPS, size: int = 8, length: int = 6, width: int = 8, seed: int = 1) -> Batches:
    """Return batches of sequences of vectors and classes."""
    return batches(lambda g: (torch.randn(size, length, width, generator=g), classes(size, g)), count, seed)


def classes(size: int, draws: torch.Generator) -> torch.Tensor:
    return torch.randint(0, CLASSES, (size,), generator=draws)


class Classifier(nn.Module):
    """A body, which a situation is about, between two layers."""

    def __init__(self, body: nn.Module, width: int = 16, inputs: int = 8) -> None:
        super().__init__()
        self.before, self.body, self.after = nn.Linear(inputs, width), body, nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.body(F.gelu(self.before(x))))
