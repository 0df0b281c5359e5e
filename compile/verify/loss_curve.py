"""Comparison of the loss curves of the plan and of the eager step, trained on copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from loopwise import batch as batches
from loopwise import random_state

from ..options import scalar_loss
from ..spec import Compute, StepSpec
from .numerics import MARGIN, SLACK, Difference

Planned = Callable[[StepSpec], Compute]
"""Function that switches a step's optimizer as the plan says, and returns the step's computation by the plan."""


def compare_loss_curves(spec: StepSpec, planned: Planned, batch: Any, steps: int) -> Difference | None:
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
    try:
        expected = _curve(spec, None, batch, steps)
        ours = _curve(spec, planned, batch, steps)
        other = _curve(spec, None, reversed_batch, steps)
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


def _curve(spec: StepSpec, planned: Planned | None, batch: Any, steps: int) -> torch.Tensor:
    """Return the losses of ``steps`` steps of copies, by the plan or eagerly, float64 of shape (steps,)."""
    spec = spec.copied()
    assert spec.optimizer is not None
    spec.optimizer.zero_grad(set_to_none=True)
    compute, losses = spec.eager if planned is None else planned(spec), []
    for step in range(steps):
        torch.manual_seed(step)
        loss = scalar_loss(compute(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        spec.optimizer.step()
        spec.optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach().double())
    return torch.stack(losses)
