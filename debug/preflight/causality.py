"""Check that a model which predicts the next token does not see it."""

from __future__ import annotations

from typing import Any

import torch

from loopwise.errors import InputError
from loopwise.loss import pair

from .dependence import named_tensors
from .outputs import Evaluation, differ
from .report import Result, faulty

LEAST = 8
"""Positions of a text, below which targets may be shifted inputs by chance."""
NAME = "causality"


def causality(evaluation: Evaluation, batch: Any) -> Result | None:
    """Check that outputs do not depend on later tokens, if the targets are the input tokens shifted by one.

    Args:
        evaluation: a call of the model in evaluation mode.
        batch: the batch of the call.

    Returns:
        The result; ``None`` if the targets are others, or the outputs have no positions.
    """
    try:
        targets = pair(batch)[1]
    except InputError:
        return None
    if not isinstance(targets, torch.Tensor) or targets.ndim != 2 or targets.shape[1] < LEAST:
        return None
    for path, tokens in named_tensors(evaluation.call.fields):
        if tokens.is_floating_point() or tokens.shape != targets.shape:
            continue
        if torch.equal(tokens[:, 1:], targets[:, :-1].to(tokens)):
            return _looks_ahead(evaluation, path, tokens)
    return None


def _looks_ahead(evaluation: Evaluation, path: str, tokens: torch.Tensor) -> Result | None:
    half = tokens.shape[1] // 2
    other = tokens.clone()
    other[:, half:] = tokens[:, half:].flip(1)
    other[:, half:] = torch.where(other == tokens, tokens.roll(1, 0), other)[:, half:]
    before = _positions(evaluation.outputs, tokens, half)
    after = _positions(evaluation.outputs_of(evaluation.call.exchanged(tokens, other)), tokens, half)
    if not before or torch.equal(other, tokens):
        return None
    if differ(before, after):
        what = (
            f"the outputs at the first {half} positions change with the tokens of input {path} after them, "
            "which are what they have to predict"
        )
        return faulty(NAME, "output_sees_target", what)
    return Result(NAME, "outputs do not depend on later tokens, which are their targets")


def _positions(outputs: list[torch.Tensor], tokens: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Return the outputs at the first positions, of those outputs that have positions."""
    samples, length = tokens.shape
    found = []
    for output in outputs:
        if output.ndim == 2 and len(output) == samples * length:
            output = output.view(samples, length, -1)
        if output.ndim != 3 or len(output) != samples:
            continue
        dim = 1 if output.shape[1] == length else 2
        if output.shape[dim] == length:
            found.append(output.narrow(dim, 0, count))
    return found
