"""Preflight: faults of a training that show on one batch, before the training begins."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
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
    step: Callable[..., Any] | None = None,
    steps: int = 100,
    frozen: str | Sequence[str] = (),
    batch_dim: int | None = 0,
    output_shape: Sequence[int | None] | None = None,
    output_range: tuple[float | None, float | None] | None = None,
    gradcheck: bool = False,
    suppress: str | Sequence[str] = (),
    baseline: str | os.PathLike[str] | None = None,
) -> PreflightReport:
    """Try out model, loss and optimizer on one batch.  All checks run on copies; model, optimizer and random states stay as they are.

    Checked are the inputs and the targets; whether outputs in evaluation mode repeat, depend on every input and feature,
    and keep samples apart; and whether the loss falls if a copy is trained on this one batch.  The rules over saved
    steps are applied to the first steps of that training: they find parameters that no optimizer holds or that get no
    gradient, wrong inputs of the loss, dead layers and updates without effect.  A first suspicion is looked at again,
    after a few steps of training, with other random numbers or with other values.  Call it before training and before a
    ``Watch`` is made; the warmup of a scheduler is left out of the learning rate.

    Args:
        model: the model, also in the wrappers of DDP or torch.compile; copies need twice its memory and that of the
            optimizer's state.
        batch: a batch of the training loop, on the model's device.
        loss: a criterion for ``(input, target)`` batches, such as ``nn.CrossEntropyLoss()``, or
            ``def loss(model, batch)`` (its first parameter is named ``model``) for batches of any other structure.
        optimizer: optimizer of the model's parameters; without one, Adam trains, and optimizers are not checked.
        step: the training step of your loop, ``def step(model, batch, optimizer)``, from setting gradients to zero to the
            update; it may return the loss.  A copy is trained by 6 to 17 calls, and the rules of training loops are
            applied.  Schedulers, scalers and counters that it holds are restored afterwards; what it writes or logs is not.
        steps: largest number of training steps, at least 20; other learning rates get half of them.
        frozen: names of parameters, or of modules whose parameters, must not change; those with
            ``requires_grad=False`` are always checked.
        batch_dim: dimension of the samples in the inputs; ``None`` if the inputs have none.
        output_shape: expected shape of the model's first output, such as ``(None, 10)``; ``None`` for any size.
        output_range: lowest and highest expected value of the first output; ``None`` for no limit.
        gradcheck: also compare backward with differences of the loss, in float64; the cost is four forward passes for
            each parameter.
        suppress: rules whose findings are left out, as ``"rule"`` or, for one module, ``"rule:module"``.
        baseline: file that ``write_baseline`` of an earlier report wrote; its findings are left out.

    Returns:
        The report, with one result for each check.

    Raises:
        InputError: an argument is not valid, the model is sharded or cannot be copied, or ``step`` uses another model or
            optimizer than those it is called with.
    """
    from .check import run_checks  # imports the rules and the Watch

    return run_checks(
        model,
        batch,
        loss,
        optimizer,
        step,
        steps=steps,
        frozen=frozen,
        batch_dim=batch_dim,
        output_shape=output_shape,
        output_range=output_range,
        gradcheck=gradcheck,
        suppress=suppress,
        baseline=baseline,
    )
