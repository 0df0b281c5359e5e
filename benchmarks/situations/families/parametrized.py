"""Situations with weights that are computed from others in each forward pass."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

from ..parts import Classifier, cross_entropy, mlp, rows, sgd, train
from ..situation import Run, situation


@situation()
def weight_norm_old(run: Run) -> None:
    """Train a layer under the hook of ``torch.nn.utils.weight_norm``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # there is a newer one
        body = nn.Sequential(weight_norm(nn.Linear(16, 16)), nn.GELU())
    train(run, Classifier(body))


@situation()
def weight_norm_new(run: Run) -> None:
    """Train a layer under the parametrization ``weight_norm``."""
    train(run, Classifier(nn.Sequential(parametrizations.weight_norm(nn.Linear(16, 16)), nn.GELU())))


@situation(slow=True)
def spectral_norm_old(run: Run) -> None:
    """Train a layer under the hook of ``torch.nn.utils.spectral_norm``, whose buffers move in each forward pass."""
    train(run, Classifier(nn.Sequential(spectral_norm(nn.Linear(16, 16)), nn.GELU())))


@situation(slow=True)
def spectral_norm_new(run: Run) -> None:
    """Train a layer under the parametrization ``spectral_norm``."""
    train(run, Classifier(nn.Sequential(parametrizations.spectral_norm(nn.Linear(16, 16)), nn.GELU())))


@situation()
def orthogonal(run: Run) -> None:
    """Train a layer under the parametrization ``orthogonal``."""
    train(run, Classifier(parametrizations.orthogonal(nn.Linear(16, 16))))


@situation(slow=True)
def parametrization_later(run: Run) -> None:
    """Register a parametrization after five batches; the optimizer gets its weight."""

    class Softened(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight.tanh()

    model = run.model(mlp())
    step = run.step(model, cross_entropy(), sgd(model))
    for number, batch in enumerate(rows()):
        if number == 5:
            parametrize.register_parametrization(model[3], "weight", Softened())
        step(batch)


@situation()
def projected_in_forward(run: Run) -> None:
    """Project the weights in place inside ``forward``, as layers with a largest norm do."""

    class Bounded(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.weight.div_(self.weight.norm(dim=1, keepdim=True).clamp(min=0.9))
            return super().forward(x)

    train(run, Classifier(nn.Sequential(Bounded(16, 16), nn.GELU())))
