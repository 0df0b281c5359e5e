"""Comparison of the loss curves of the plan and of the eager step, trained on copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from loopwise import batch as batches
from loopwise import random_state

from ..options import scalar_loss
from ..plan import Plan
from ..spec import Compute, StepSpec
from .numerics import MARGIN, SLACK, Difference

Make = Callable[[StepSpec, Plan], Compute]
"""Function that returns the computation of a step by a plan and brings the step's optimizer into the plan's form."""


def compare_loss_curves(spec: StepSpec, make: Make, plan: Plan, batch: Any, steps: int) -> Difference | None:
    """Train copies of model and optimizer for some steps on one batch and compare their losses.

    The budget is the distance between two eager curves, one of them with the batch's samples in
    reverse order, which changes the order of additions.  Random states are the same in all three,
    and are restored afterwards.

    Returns:
        The loss that is furthest over its budget, or ``None``.
    """
    states = random_state.get([])
    size = batches.length(batch)
    reversed_batch = batches.index(batch, torch.arange(size - 1, -1, -1), size)
    eager = Plan(precision=plan.precision)
    runs = ((eager, batch), (plan, batch), (eager, reversed_batch))
    try:
        expected, ours, other = (_curve(spec, make, kind, data, steps) for kind, data in runs)
    finally:
        random_state.set(states, [])
    errors, spread = (ours - expected).abs(), (other - expected).abs()
    budgets = MARGIN * spread.cummax(0).values + SLACK * torch.finfo(expected.dtype).eps * expected.abs()
    worst = int((errors / budgets).argmax())
    if bool(errors[worst] <= budgets[worst]):
        return None
    size_of_loss = expected[worst].abs().clamp_min(1e-30)
    error, budget = (float(values[worst] / size_of_loss) for values in (errors, budgets))
    return Difference(f"the loss of step {worst + 1}", error, budget)


def _curve(spec: StepSpec, make: Make, plan: Plan, batch: Any, steps: int) -> torch.Tensor:
    """Return the losses of ``steps`` steps of copies, float64 of shape (steps,)."""
    spec = spec.copied()
    assert spec.optimizer is not None
    spec.optimizer.zero_grad(set_to_none=True)
    compute, losses = make(spec, plan), []
    for step in range(steps):
        torch.manual_seed(step)
        loss = scalar_loss(compute(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        spec.optimizer.step()
        spec.optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach().double())
    return torch.stack(losses)
