"""Samples of the elements of weights."""

from __future__ import annotations

import math

import torch

from loopwise.torch_internals import local_tensor

from .sums import flat

SAMPLE = 4096
"""Number of elements of a weight in the sample that measures its update."""


def sample(parameter: torch.Tensor) -> torch.Tensor:
    """Return elements from all over a tensor, of all columns."""
    values = flat(local_tensor(parameter).detach()).values
    step, columns = max(1, values.numel() // SAMPLE), parameter.shape[-1] if parameter.ndim else 1
    while step > 1 and math.gcd(step, columns) > 1:
        step += 1
    return values[::step]
