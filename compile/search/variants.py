"""Variants of a step's computation: a plan turned into a function from a batch to its loss."""

from __future__ import annotations

from typing import Any

import torch

from loopwise import batch as batches
from loopwise.devices import channels_last

from ..graph.backend import Log, compile_function
from ..plan import Plan
from ..spec import Compute, StepSpec

RARE = 8
"""Batches of a shape other than the usual one that run eagerly before that shape is compiled, too."""
MANY = 24
"""Batches of other shapes, all together, after which they are compiled whatever their shape: Dynamo
then compiles one graph for any size of the dimensions that change."""


def variant(spec: StepSpec, plan: Plan, log: Log) -> Compute:
    """Return the step's computation by ``plan``; it is compiled at its first batch, and ``log`` collects the events."""
    inner = compile_function(spec.eager, plan, log)
    if plan.layout == "as_is":
        return inner

    def compute(batch: Any) -> torch.Tensor:
        return inner(batches.map_tensors(channels_last, batch))  # type: ignore[no-any-return]

    return compute


def shape_of(batch: Any) -> Any:
    """Return shapes and dtypes of a batch's tensors."""
    tensors = [leaf for leaf in batches.leaves(batch) if isinstance(leaf, torch.Tensor)]
    return tuple((_shape(tensor), str(tensor.dtype)) for tensor in tensors)


def _shape(tensor: torch.Tensor) -> Any:
    """Return the shape of a tensor; of a nested tensor, the number of its dimensions."""
    return tensor.ndim if tensor.is_nested else tuple(tensor.shape)
