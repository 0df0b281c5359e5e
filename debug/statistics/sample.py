"""A sample of a tensor's elements."""

from __future__ import annotations

import math

import torch

from .sums import flat

SAMPLE = 4096
"""Elements of a weight that its update is measured by."""


def sample(parameter: torch.Tensor) -> torch.Tensor:
    """Elements from all over; never only of some columns."""
    values = flat(getattr(parameter, "_local_tensor", parameter).detach()).values
    step, columns = max(1, values.numel() // SAMPLE), parameter.shape[-1] if parameter.ndim else 1
    while step > 1 and math.gcd(step, columns) > 1:
        step += 1
    return values[::step]
