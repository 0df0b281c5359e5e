"""Reference that compiled steps are compared with: the eager step, and the same step in float64."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loopwise.preserve import preserve

from ..spec import Compute, StepSpec, eager_computation
from .errors import relative_errors
from .sandbox import Observed, float64_copies, observe, observe_draws, perturbed

RANDOM_MODULES = re.compile("(|Alpha|FeatureAlpha)Dropout|StochasticDepth|DropPath|DropBlock|RReLU")
"""Beginnings of the names of modules that draw random numbers in training."""


@dataclass
class Reference:
    """Tensors of the eager step, and of the same step in float64 if a comparison needed it and the model allows it."""

    eager: Observed
    float64: Observed | None = None
    """``None``: not run yet, or the model draws random numbers, or its copy in float64 does not run."""
    errors: dict[str, float] = field(default_factory=dict)
    """Relative errors of the eager step by tensor, as far as they are known.  If ``float64`` is missing they
    were measured without the random draws, or in an earlier run."""
    perturb: Callable[[int], dict[str, float]] = lambda seed: {}
    """Function from a seed to the relative changes of the eager step when its weights move by a few last places."""
    measure: Callable[[], tuple[Observed | None, dict[str, float]]] | None = None
    """Function that returns ``float64`` and ``errors``; ``None`` once they are known."""

    def run_float64(self) -> None:
        """Run the step in float64, unless that was done before."""
        if self.measure is not None:
            self.float64, self.errors = self.measure()
            self.measure = None


def reference(spec: StepSpec, batch: Any, errors: dict[str, float] | None = None) -> Reference:
    """Observe the eager step on a batch.  The step in float64 runs later, if a candidate is not close to the eager one.

    Args:
        spec: the training step.
        batch: the batch to compare on.
        errors: the eager step's errors from an earlier run in the same situation; then nothing runs in float64.
    """
    eager = observe(spec.eager, spec.model, batch)
    perturb = functools.cache(lambda seed: _perturbation(spec, batch, eager, seed))
    measure = functools.partial(_measure, spec, batch, eager)
    return Reference(eager, None, errors or {}, perturb, None if errors else measure)


def _perturbation(spec: StepSpec, batch: Any, eager: Observed, seed: int) -> dict[str, float]:
    """Return the relative changes of the eager step with perturbed weights."""
    with perturbed(spec.model, seed):
        return relative_errors(observe(spec.eager, spec.model, batch), eager)


def _measure(spec: StepSpec, batch: Any, eager: Observed) -> tuple[Observed | None, dict[str, float]]:
    """Return the step's tensors in float64, if they can be compared, and the eager step's relative errors."""
    try:
        model, loss, batch64 = float64_copies(spec.model, spec.loss, batch)
        compute = eager_computation(model, loss, "exact")
        exact, drew = observe_draws(compute, model, batch64)
        if not drew or not _depends_on_draws(compute, model, batch64):
            return exact, relative_errors(eager, exact)
        with preserve(model, spec.model):
            for module in (*model.modules(), *spec.model.modules()):
                module.training &= not RANDOM_MODULES.match(type(module).__name__)
            if _depends_on_draws(compute, model, batch64):
                return None, {}
            calm = observe(spec.eager, spec.model, batch)
            return None, relative_errors(calm, observe(compute, model, batch64))
    except Exception:  # an op without float64, a model that cannot be copied: compare with eager alone
        return None, {}


def _depends_on_draws(compute: Compute, model: nn.Module, batch: Any) -> bool:
    """Return whether the loss depends on the random state."""
    losses = []
    for seed in (0, 1):
        with preserve(model), torch.no_grad():
            torch.manual_seed(seed)
            losses.append(compute(batch))
    return not torch.equal(*losses)
