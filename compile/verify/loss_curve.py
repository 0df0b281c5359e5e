"""Some training steps of the plan and of the eager step side by side, on copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise import random_state
from loopwise.wrappers import unwrap

from ..plan import Plan
from ..search import optimizers
from .numerics import MARGIN, SLACK, Difference
from .sandbox import Compute, total

Make = Callable[[nn.Module, Any, Plan], Compute]
"""From a model, a loss and a plan to the computation of a batch's loss."""


def side_by_side(
    make: Make, model: nn.Module, loss: Any, optimizer: Any, plan: Plan, batch: Any, steps: int
) -> Difference | None:
    """Train copies of model and optimizer for ``steps`` steps on ``batch`` and compare their loss curves.

    The budget is the distance between two eager curves, one of them with the batch's samples in
    reverse order: what another order of additions does.  Random states are the same in all three,
    and as before afterwards.

    Returns:
        The loss that is furthest over its budget, or ``None``.
    """
    kept = random_state.get([])
    size = batches.length(batch)
    turned = batches.index(batch, torch.arange(size - 1, -1, -1), size)
    try:
        curve, ours, other = (
            _curve(make, unwrap(model), loss, optimizer, form, data, steps)
            for form, data in (
                (Plan(precision=plan.precision), batch),
                (plan, batch),
                (Plan(precision=plan.precision), turned),
            )
        )
    finally:
        random_state.set(kept, [])
    apart, spread = (ours - curve).abs(), (other - curve).abs()
    budget = MARGIN * spread.cummax(0).values + SLACK * torch.finfo(curve.dtype).eps * curve.abs()
    worst = int((apart / budget).argmax())
    if bool(apart[worst] <= budget[worst]):
        return None
    size_then = curve[worst].abs().clamp_min(1e-30)
    return Difference(
        f"the loss of step {worst + 1}", float(apart[worst] / size_then), float(budget[worst] / size_then)
    )


def _curve(
    make: Make, model: nn.Module, loss: Any, optimizer: Any, plan: Plan, batch: Any, steps: int
) -> torch.Tensor:
    """Losses of ``steps`` steps of copies, float64 of shape (steps,)."""
    model, optimizer = copy.deepcopy((model, optimizer))  # together: the copy holds the copied parameters
    optimizer.zero_grad(set_to_none=True)
    optimizers.choose(optimizer, plan.optimizer)
    compute, losses = make(model, loss, plan), []
    for step in range(steps):
        torch.manual_seed(step)
        value = total(compute(batch))
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(value.detach().double())
    return torch.stack(losses)
