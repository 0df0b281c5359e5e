"""Decide in the first batches where a sample's loss comes from: the training step, or a scoring pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopwise import batch as batches
from loopwise.errors import InputError

from .forward import StepLosses

PATIENCE = 4
"""Number of batches that may pass without a recognised forward pass: the halves of a GAN take turns."""
LEAST_AGREEMENT = 0.1
"""Least cosine of the loop's gradient with the criterion's; label smoothing, class weights or a second loss give more."""
CRITERION_FIX = (
    "use criterion = loader.criterion(nn.CrossEntropyLoss()), or its like, in place of the loop's own"
)


def settle(losses: StepLosses, probe: Callable[[], Any] | None, batch: Any, last: bool) -> str | None:
    """Decide after a training step whether its losses can be read.

    Args:
        losses: the hook, which has waited for ``losses.expected`` batches.
        probe: function that scores the batch by a forward pass; ``None``: the arguments exclude scoring passes.
        batch: the batch of that step.
        last: no further batch comes in this epoch, so the decision is due.

    Returns:
        ``None``: it is not known yet.  An empty text: the losses of the training steps are read.  Any other text: the
        reason why samples have to be scored by forward passes instead, which was tried and works.

    Raises:
        InputError: neither way works, or the loop trains on other inputs, or with another loss, than the arguments say.
    """
    if losses.error is not None:
        raise losses.error
    if losses.observed and not losses.problem:
        _validate_agreement(losses)
        return ""
    late = last or losses.expected >= PATIENCE
    if losses.problem or losses.compiled:
        reason = (
            losses.problem
            or "its forward pass is inside compiled code (pass the module that torch.compile returns as model)"
        )
    elif losses.foreign and late:
        raise InputError(
            f"batches {batches.describe(batch)}, and forward passes of the model that received {losses.foreign}, with "
            "none of the batches' inputs in order",
            "a forward pass of each batch's input, as the loader yielded it, perhaps of another dtype or flattened",
            "the loop normalises, augments, mixes, reorders or splits the batches",
            f"do that in the dataset or the collate function; or {CRITERION_FIX}",
        )
    elif late and not losses.foreign:
        reason = (
            "no forward pass of the model with gradient was seen (if it is compiled, pass the module that torch.compile "
            "returns; evaluate with a plain DataLoader)"
        )
    else:
        return None
    if probe is None:
        raise _unusable(batch, reason, "score_every=0 excludes scoring passes")
    try:
        probe()
    except Exception as error:
        raise _unusable(batch, reason, f"a scoring pass raises {type(error).__name__}: {error}") from error
    return reason


def _validate_agreement(losses: StepLosses) -> None:
    agreement = 1.0 if losses.agreement is None else float(losses.agreement)
    if agreement < LEAST_AGREEMENT:
        raise InputError(
            f"a loss of the loop whose gradient has a cosine of {agreement:.2f} with the gradient of the loss that the "
            "loader was given",
            f"the loss of the training step, with reduction='none': a cosine of at least {LEAST_AGREEMENT}",
            "the loop's loss takes another target, or is another function",
            f"pass that loss; or {CRITERION_FIX}",
        )


def _unusable(batch: Any, reason: str, scoring: str) -> InputError:
    return InputError(
        f"batches {batches.describe(batch)} without readable losses: {reason}; and {scoring}",
        "a model whose output and a batch whose second field the loss takes: loss(model(input), target)",
        "the loop changes the input, the output or the target before its loss",
        f"{CRITERION_FIX}; or pass loss=function, with def function(model, batch)",
    )
