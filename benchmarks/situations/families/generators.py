"""Situations with random draws of NumPy, Python and generators of the user's own."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import nn

from ..parts import Classifier, F, mlp
from ..situation import Run, situation
from .draws import trained


@situation(slow=True)
def numpy_draws(run: Run) -> None:
    """Train with mixup, whose share NumPy draws inside the loss."""

    def mixup(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        share, order = float(np.random.beta(0.4, 0.4)), torch.as_tensor(np.random.permutation(len(x)))
        out = model(share * x + (1 - share) * x[order])
        return share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, y[order])

    trained(run, mlp(), loss=mixup)


@situation(slow=True)
def python_draws(run: Run) -> None:
    """Train with stochastic depth, whose layers Python's ``random`` drops."""

    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                if not self.training or random.random() > 0.4:
                    x = x + F.gelu(layer(x))
            return x

    trained(run, Classifier(Depth()))


@situation()
def own_generator(run: Run) -> None:
    """Train with noise from a ``torch.Generator`` that the model holds."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = torch.Generator().manual_seed(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0.1 * torch.randn(x.shape, generator=self.generator)

    model = trained(run, Classifier(Noisy()))
    run.keep(own_draw=torch.rand(2, generator=model.body.generator))


@situation(slow=True)
def generator_of_closure(run: Run) -> None:
    """Train with noise from a ``torch.Generator`` and one of NumPy that the loss's closure holds."""
    noise, numpy_noise = torch.Generator().manual_seed(6), np.random.default_rng(7)

    def noisy(model: nn.Module, batch: Any) -> torch.Tensor:
        x = batch[0] + 0.1 * torch.randn(batch[0].shape, generator=noise)
        return F.cross_entropy(model(x) * (1 + 0.1 * numpy_noise.random()), batch[1])

    trained(run, mlp(), loss=noisy)
    run.keep(own_draw=torch.rand(2, generator=noise), numpy_own=numpy_noise.random())


@situation(slow=True)
def reseeded_inside(run: Run) -> None:
    """Seed the global generators inside the loss, so that each pass draws the same noise."""

    def fixed(model: nn.Module, batch: Any) -> torch.Tensor:
        torch.manual_seed(11)
        random.seed(11)
        return F.cross_entropy(model(batch[0] + 0.1 * torch.randn_like(batch[0])), batch[1])

    trained(run, mlp(), loss=fixed)


@situation(slow=True)
def forked_draws(run: Run) -> None:
    """Draw noise under ``fork_rng``, which puts the global state back."""

    def forked(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            noise = torch.randn(8)
        return F.cross_entropy(model(batch[0] + 0.1 * noise) + 0.01 * torch.randn(5), batch[1])

    trained(run, mlp(), loss=forked)
