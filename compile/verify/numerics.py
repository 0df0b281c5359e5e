"""Comparison of one compiled pass with the eager pass, by an error budget for each tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..spec import Compute, StepSpec
from .errors import least_sizes, relative_error
from .reference import Reference, reference
from .sandbox import Observed, observe

MARGIN = 4.0
"""A candidate may be this many times further from float64 than the eager step is."""
SLACK = 16.0
"""Units in the last place of the dtype that a candidate may be off beside that: an eager error may be 0 by luck."""
UNKNOWN = 1e-3
"""Relative budget if the error of the eager step is unknown."""
PERTURBATIONS = (4, 16)
"""Numbers of perturbed eager steps that are run, one after the other, before a candidate is refused.  They tell how
sharp the edges are: behind a ReLU, weights a few last places off may let the gradient of another element pass."""


@dataclass(frozen=True)
class Difference:
    """Tensor whose error is over its budget; both are relative to the tensor's root mean square."""

    tensor: str
    error: float
    budget: float

    def __str__(self) -> str:
        return f"{self.tensor} is off by {self.error:.2g} of its size, the budget is {self.budget:.2g}"


def compare_step(spec: StepSpec, compute: Compute, batch: Any) -> Difference | None:
    """Compare one forward and backward pass of ``compute`` with the eager pass; return the worst difference, if any."""
    return compare(observe(compute, spec.model, batch), reference(spec, batch))


def compare(observed: Observed, expected: Reference) -> Difference | None:
    """Return the tensor that is furthest over its error budget; ``None`` if all tensors are within theirs."""
    if missing := set(expected.eager) ^ set(observed):
        return Difference(f"{min(missing)} (only one of both steps has it)", math.inf, 0.0)
    if _is_near(observed, expected.eager):
        return None
    expected.run_float64()
    worst = _worst(observed, expected, {})
    for count in PERTURBATIONS:
        if worst is None or worst.error == math.inf:
            return worst
        changes = [expected.perturb(seed) for seed in range(count)]
        sharpness = {name: max(change[name] for change in changes) for name in changes[0]}
        worst = _worst(observed, expected, sharpness)
    return worst


def _is_near(observed: Observed, eager: Observed) -> bool:
    """Return whether all tensors are so close to the eager ones that no measured budget would refuse them."""
    return _worst(observed, Reference(eager, eager, dict.fromkeys(eager, 0.0)), {}) is None


def _worst(observed: Observed, expected: Reference, sharpness: dict[str, float]) -> Difference | None:
    """Return the tensor that is furthest over its budget, budgets raised by ``sharpness``."""
    worst: Difference | None = None
    least = least_sizes(expected.eager)
    for name in expected.eager:
        error, budget = _error_and_budget(name, observed[name], expected, least.get(name, 0.0))
        budget = max(budget, MARGIN * sharpness.get(name, 0.0))
        if not error <= budget and (worst is None or error / budget > worst.error / worst.budget):
            worst = Difference(name, error, budget)
    return worst


def _error_and_budget(name: str, tensor: Tensor, expected: Reference, least: float) -> tuple[float, float]:
    """Return the relative error of one tensor, and its budget."""
    eager = expected.eager[name]
    if tensor.shape != eager.shape:
        return math.inf, 1.0
    if not eager.is_floating_point():
        return (0.0 if torch.equal(tensor, eager) else math.inf), 1.0
    unit = torch.finfo(eager.dtype).eps
    if expected.float64 is None:  # both tensors have errors, in different directions
        known = expected.errors.get(name)
        budget = UNKNOWN if known is None else 2 * MARGIN * known + 2 * SLACK * unit
        return relative_error(tensor, eager, least), budget
    budget = MARGIN * expected.errors[name] + SLACK * unit
    return relative_error(tensor, expected.float64[name], least), budget
