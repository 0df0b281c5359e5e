"""Two forms of a loss: a criterion of (output, target), or a function of (model, batch)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError


def takes_model(loss: Callable[..., Any]) -> bool:
    """Return whether ``loss`` is a function of (model, batch) rather than a criterion of (output, target)."""
    if isinstance(loss, nn.Module):
        return False
    try:
        return next(iter(inspect.signature(loss).parameters), None) == "model"
    except (TypeError, ValueError):  # builtins without a signature are criteria
        return False


def is_pair(batch: Any) -> bool:
    """Return whether a batch has exactly two fields, as (input, target) has."""
    return isinstance(batch, (tuple, list)) and len(batch) == 2


def pair(batch: Any) -> tuple[Any, Any]:
    """Return the input and the target of a batch of exactly these two fields.

    Raises:
        InputError: the batch has another structure.
    """
    if is_pair(batch):
        return batch[0], batch[1]
    raise InputError(
        f"a batch that is no pair (input, target): {batches.describe(batch)}",
        "a pair of input and target, because the loss is a criterion",
        "the model takes several inputs, or the batch is a dict",
        "pass loss=function, with def function(model, batch), its first parameter named model, returning the loss",
    )
