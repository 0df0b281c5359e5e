"""Forms of a training step that are compared: eager, torch.compile, and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

FORMS = ("eager", "torch.compile", "ours")
LOW = "torch.compile, autocast"
OFF = "ours, autotune off"
"""Form whose first step is measured, and no others."""
LEARNING_RATE = 1e-4


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)


def loop(
    model: Any, loss: Any, optimizer: torch.optim.Optimizer, dtype: torch.dtype | None = None
) -> Callable[[Any], torch.Tensor]:
    """Return the usual training step, under autocast if there is a ``dtype``."""
    from loopwise.loss import takes_model

    with_model = takes_model(loss)

    def compute(batch: Any) -> torch.Tensor:
        return loss(model, batch) if with_model else loss(model(batch[0]), batch[1])

    return updating(compute, optimizer, "cpu", dtype)


def updating(
    compute: Callable[[Any], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    device: str,
    dtype: torch.dtype | None,
) -> Callable[[Any], torch.Tensor]:
    """Return a training step around ``compute``, which returns a batch's loss."""

    def step(batch: Any) -> torch.Tensor:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            value = compute(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step


def made(form: str, model: nn.Module, loss: Any) -> Callable[[Any], torch.Tensor]:
    """Return the training step in one of the ``FORMS``, or as ``OFF``, ``fast``, ``max-autotune`` or ``LOW``."""
    if form in ("ours", "fast", OFF):
        from loopwise.compile import TrainStep

        precision, autotune = ("mixed" if form == "fast" else "exact"), ("off" if form == OFF else "default")
        return TrainStep(model, loss, optimizer_of(model), precision=precision, autotune=autotune)
    if form != "eager":
        model.compile(mode="max-autotune" if form == "max-autotune" else None)
    return loop(model, loss, optimizer_of(model), torch.bfloat16 if form == LOW else None)
