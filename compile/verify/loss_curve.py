"""Comparison of the loss curves of the plan and of the eager step, trained for some steps without a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from loopwise import batch as batches

from ..layout import in_plain_layout
from ..losses import scalar_loss
from ..spec import Compute, StepSpec
from .numerics import MARGIN, SLACK, Difference
from .sandbox import Sandbox

FLAGS = ("fused", "foreach")
"""Keys of parameter groups that choose an implementation of the update."""


def compare_loss_curves(spec: StepSpec, compute: Compute, batch: Any, steps: int) -> Difference | None:
    """Train by the plan and eagerly for some steps on one batch, compare the losses, and restore everything.

    The eager steps use an optimizer that is independent of the plan: weights and state in their ordinary layout, one
    parameter after the other.  The budget is the distance between two eager curves, one of them with the
    batch's samples in reverse order, which changes the order of additions.  Random states are the same in all
    three.  DDP communicates, so that all ranks must call this function.

    Returns:
        The loss that is furthest over its budget, or ``None``.
    """
    size = batches.length(batch)
    reversed_batch = batches.index(batch, torch.arange(size - 1, -1, -1), size)
    expected = _curve(spec, spec.eager, batch, steps, independent=True)
    ours = _curve(spec, compute, batch, steps)
    other = _curve(spec, spec.eager, reversed_batch, steps, independent=True)
    eps = torch.finfo(expected.dtype).eps
    ours, expected, other = ours.double(), expected.double(), other.double()
    errors, spread = (ours - expected).abs(), (other - expected).abs()
    budgets = MARGIN * spread.cummax(0).values + SLACK * eps * expected.abs()
    worst = int((errors / budgets).argmax())
    if bool(errors[worst] <= budgets[worst]):
        return None
    size_of_loss = expected[worst].abs().clamp_min(1e-30)
    error, budget = (float(values[worst] / size_of_loss) for values in (errors, budgets))
    return Difference(f"the loss of step {worst + 1}", error, budget)


def _curve(
    spec: StepSpec, compute: Compute, batch: Any, steps: int, independent: bool = False
) -> torch.Tensor:
    """Return the losses of ``steps`` steps, of their own dtype and of shape (steps,)."""
    optimizer, losses = spec.optimizer, []
    assert optimizer is not None
    wrapped = isinstance(spec.model, DistributedDataParallel)
    sandbox = Sandbox(spec, batch, updates=True, communicate=wrapped)
    sandbox.refuse_traces()
    with sandbox, contextlib.ExitStack() as stack:
        if independent:
            stack.enter_context(_plain(optimizer))
            if not wrapped:  # a plan leaves the layout under DDP as it is
                stack.enter_context(in_plain_layout(spec.model, optimizer))
        for step in range(steps):
            torch.manual_seed(step)
            loss = scalar_loss(compute(batch))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
    return torch.stack(losses)


@contextlib.contextmanager
def _plain(optimizer: Optimizer) -> Iterator[None]:
    """Let ``optimizer`` update each parameter by itself, by torch's basic operations, inside the context."""
    flags = [
        (group, name, group[name]) for group in optimizer.param_groups for name in FLAGS if name in group
    ]
    for group, name, _ in flags:
        group[name] = False
    try:
        yield
    finally:
        for group, name, value in flags:
            group[name] = value
