"""The computation of a batch's loss: as the user would write it, and in the form that a plan says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.devices import channels_last, native_dtype
from loopwise.loss import pair, takes_model

from .. import options
from ..graph.backend import Log, compile_function
from ..plan import Plan
from ..verify.sandbox import Compute


def eager(model: nn.Module, loss: Callable[..., torch.Tensor], precision: str) -> Compute:
    """The step's computation as the user would write it: from a batch to its loss."""
    whole = takes_model(loss)
    device = options.device_of(model)
    dtype = native_dtype(device) if precision == "mixed" else torch.float32

    def compute(batch: Any) -> torch.Tensor:
        if whole:
            return loss(model, batch)
        inputs, targets = pair(batch)
        return loss(model(inputs), targets)

    if dtype is torch.float32:
        return compute

    def lowered(batch: Any) -> torch.Tensor:
        with torch.autocast(device.type, dtype=dtype):
            return compute(batch)

    return lowered


def by_plan(plain: Compute, plan: Plan, log: Log) -> Compute:
    """A computation in the form that ``plan`` says."""
    inner = compile_function(plain, plan, log)
    if plan.layout == "as_is":
        return inner

    def compute(batch: Any) -> torch.Tensor:
        loss: torch.Tensor = inner(batches.map_tensors(channels_last, batch))
        return loss

    return compute


def shape_of(batch: Any) -> Any:
    """Shapes and dtypes of a batch's tensors."""
    tensors = [leaf for leaf in batches.leaves(batch) if isinstance(leaf, torch.Tensor)]
    return tuple((tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors)
