"""Preflight: faults of a training that show on one batch, before the training begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from .report import PreflightReport


def preflight(
    model: nn.Module,
    batch: Any,
    loss: Callable[..., Any],
    optimizer: Optimizer | None = None,
    *,
    steps: int = 100,
    seconds: float = 30.0,
) -> PreflightReport:
    """Try out model, loss and optimizer on one batch.  All checks run on copies; model, optimizer and random states stay as they are.

    Checked are the inputs and the targets; whether outputs in evaluation mode repeat, depend on the input, and keep
    samples apart; and whether the loss falls if a copy is trained on this one batch.  All rules over saved steps are
    applied to that training: they find parameters that no optimizer holds or that get no gradient, wrong inputs of the
    loss, dead layers and updates without effect.  Call it before training and before a ``Watch`` is made; the warmup of
    a scheduler is left out of the learning rate.

    Args:
        model: the model, also in the wrappers of DDP or torch.compile; copies need twice its memory and that of the
            optimizer's state.
        batch: a batch of the training loop, on the model's device.
        loss: a criterion for ``(input, target)`` batches, such as ``nn.CrossEntropyLoss()``, or
            ``def loss(model, batch)`` (its first parameter is named ``model``) for batches of any other structure.
        optimizer: optimizer of the model's parameters; without one, Adam trains, and optimizers are not checked.
        steps: largest number of training steps, at least 20.
        seconds: time after which the training ends.

    Returns:
        The report, with one result for each check.

    Raises:
        InputError: an argument is not valid, or the model is sharded or cannot be copied.
    """
    from .check import run_checks  # imports the rules and the Watch

    return run_checks(model, batch, loss, optimizer, steps, seconds)
