"""Comparison of one compiled pass with the eager pass, by an error budget for each tensor."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loopwise.ranks import anywhere, gather

from ..spec import Compute, StepSpec
from .errors import least_sizes, relative_error
from .reference import Reference, nudged, present, reference
from .sandbox import Observed, Sandbox

MARGIN = 4.0
"""A candidate may be this many times further from float64 than the eager step is."""
SLACK = 16.0
"""Units in the last place of the dtype that a candidate may be off beside that: an eager error may be 0 by luck."""
UNKNOWN = 1e-3
"""Relative budget if the error of the eager step is unknown."""
PERTURBATIONS = (4, 16)
"""Numbers of perturbed eager steps that are run, one after the other, before a candidate is refused.  They tell how
sharp the edges are: behind a ReLU, weights a few last places off may let the gradient of another element pass; and how
much of a sum is left where its terms cancel."""


@dataclass(frozen=True)
class Difference:
    """Tensor whose error is over its budget; both are relative to the tensor's root mean square."""

    tensor: str
    error: float
    budget: float

    def __str__(self) -> str:
        return f"{self.tensor} is off by {self.error:.2g} of its size, the budget is {self.budget:.2g}"


class NoTime(Exception):
    """Signal that a comparison has taken too long; the text is the reason."""


UNSURE = Difference("no tensor yet", math.inf, 0.0)
"""Stands for a difference that the step in float64 decides about."""


class Comparison:
    """Comparison of compiled passes of a step with its eager pass, at two points: the weights as they are, and nudged.

    Args:
        spec: the training step.
        batch: the batch of the passes.
        communicate: whether DDP communicates in the passes; all ranks must then make the same comparison.
        awaited: whether a forward pass of the model still awaits its backward pass.
    """

    def __init__(
        self,
        spec: StepSpec,
        batch: Any,
        communicate: bool = False,
        awaited: bool = False,
    ) -> None:
        self.sandbox = Sandbox(spec, batch, communicate=communicate, awaited=awaited)
        self._agree = anywhere if communicate else bool
        self._communicate = communicate
        self._references: dict[Any, Reference] = {}
        self.ends = math.inf
        """Time of ``time.perf_counter`` from which on only the first few perturbed passes are begun, which correct candidates need."""

    def reference(self, point: Any = present) -> Reference:
        """Return the eager step's tensors at a point, whose context must be entered."""
        if point not in self._references:
            self._references[point] = reference(self.sandbox)
        return self._references[point]

    def is_near(self, observed: Observed) -> bool:
        """Return whether tensors of a pass are so close to the eager ones that comparing them takes no further passes."""
        eager = self.reference().eager
        return set(observed) == set(eager) and _is_near(observed, eager)

    def difference(self, compute: Compute, first: Observed | None = None) -> Difference | None:
        """Return the worst difference of ``compute`` from the eager step at the first point that has one.

        Args:
            compute: the computation.
            first: its tensors at the weights as they are, if it has run there already.

        Raises:
            StateError: a pass cannot be tried without a trace.
            NoTime: the comparison was not at its end at the time ``ends``.
        """
        if compute is self.sandbox.spec.eager and self.sandbox.obstacle:
            return None
        self.sandbox.refuse_traces()
        weights = self.sandbox.weights()
        for point in (present, nudged):
            with point(weights):
                expected = self.reference(point)
                self.sandbox.refuse_traces()  # of what the first pass showed
                observed = first if first is not None and point is present else self.sandbox.observe(compute)
                difference = self._of_all_ranks(compare(observed, expected, self._agree, self.ends))
            if difference is not None:
                name = difference.tensor + (" at nudged weights" if point is nudged else "")
                return Difference(name, difference.error, difference.budget)
        return None

    def _of_all_ranks(self, difference: Difference | None) -> Difference | None:
        """Return a difference, or that of another rank: all ranks must go the same way if they communicate."""
        found = gather(difference) if self._communicate else [difference]
        return difference or next((one for one in found if one is not None), None)


def compare_step(spec: StepSpec, compute: Compute, batch: Any) -> Difference | None:
    """Compare forward and backward passes of ``compute`` with the eager ones; return the worst difference, if any."""
    return Comparison(spec, batch).difference(compute)


def compare(
    observed: Observed,
    expected: Reference,
    agree: Callable[[bool], bool] = bool,
    ends: float = math.inf,
) -> Difference | None:
    """Return the tensor that is furthest over its error budget; ``None`` if all tensors are within theirs.

    Args:
        observed: the tensors.
        expected: the tensors of the eager step.
        agree: returns whether any rank says yes, if the ranks must run the same passes.
        ends: time of ``time.perf_counter`` from which on only the first few perturbed passes are begun.

    Raises:
        NoTime: the comparison was not at its end then.
    """
    if missing := set(expected.eager) ^ set(observed):
        worst: Difference | None = Difference(
            f"{min(missing)} (only one of both steps has it)", math.inf, 0.0
        )
    else:
        worst = None if _is_near(observed, expected.eager) else UNSURE
    if not agree(worst is UNSURE):
        return worst
    expected.run_float64()
    worst = worst if missing else _worst(observed, expected, {})
    for count in PERTURBATIONS:
        if not agree(worst is not None and worst.error != math.inf):
            return worst
        changes = []
        for seed in range(count):
            if agree(count > PERTURBATIONS[0] and time.perf_counter() > ends):
                raise NoTime("not compared to the end: would exceed max_seconds")
            changes.append(expected.perturb(seed))
        sharpness = {name: max(change[name] for change in changes) for name in changes[0]}
        worst = worst if missing else _worst(observed, expected, sharpness)
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
    if tensor.dtype != eager.dtype:
        return math.inf, 1.0
    if not (eager.is_floating_point() or eager.is_complex()):
        return (0.0 if torch.equal(tensor, eager) else math.inf), 1.0
    unit = torch.finfo(eager.dtype).eps
    if expected.float64 is None:  # both tensors have errors, in different directions
        return relative_error(tensor, eager, least), UNKNOWN
    budget = MARGIN * expected.errors[name] + SLACK * unit
    return relative_error(tensor, expected.float64[name], least), budget
