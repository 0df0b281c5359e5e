"""The two forms in which a loss is given: a criterion of (output, target), or a function of (model, batch)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError


def takes_model(loss: Callable[..., Any]) -> bool:
    """Whether ``loss`` is a function of (model, batch), not a criterion of (output, target)."""
    if isinstance(loss, nn.Module):
        return False
    try:
        return next(iter(inspect.signature(loss).parameters), None) == "model"
    except (TypeError, ValueError):  # builtins without a signature are criteria
        return False


def pair(batch: Any) -> tuple[Any, Any]:
    """Input and target of a batch that has no more than the two."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise InputError(
        f"a batch of another form than (input, target): {batches.describe(batch)}",
        "a pair of input and target when the loss is a criterion",
        "a criterion does not know which fields are the model's input and target",
        "pass loss=function, with def function(model, batch) returning the loss",
    )
