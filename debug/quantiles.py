"""Quantiles and histograms of single tensors, from their sorted values."""

from __future__ import annotations

import math

import numpy as np
import torch

from .partials import Flat, real

PERCENTS = (1, 5, 25, 50, 75, 95, 99)
"""The quantiles."""
BINS = 64
"""Of a histogram."""


def ordered(flat: Flat) -> torch.Tensor:
    """All values as float64, ascending, NaN last."""
    values = real(flat.values)
    if flat.zeros:
        values = torch.cat((values, values.new_zeros(flat.zeros)))
    if values.device.type == "cpu":  # NumPy sorts 5 million in 50 ms, torch in 680 ms (AMD EPYC, AVX2)
        return torch.from_numpy(np.sort(values.resolve_neg().numpy())).to(torch.float64)
    return values.sort().values.to(torch.float64)


def quantiles(values: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """Interpolated linearly, as `torch.quantile` does it for at most 16 million values.

    Args:
        values: `ordered`.
        fractions: float64 of shape (quantiles,), on the device of ``values``.

    Returns:
        Like ``fractions``; NaN where there are no values or a NaN is one of them.
    """
    if not values.numel():
        return torch.full_like(fractions, math.nan)
    places = fractions * (values.numel() - 1)
    below, above = (values[place.to(torch.int64)] for place in (places.floor(), places.ceil()))
    share = places - places.floor()
    between = torch.where(below == above, below, below * (1 - share) + above * share)
    return between.masked_fill(values[-1].isnan(), math.nan)


def histogram(values: torch.Tensor) -> torch.Tensor:
    """Counts in equal bins between the least and the greatest finite value, both of which are counted.

    Args:
        values: `ordered`.

    Returns:
        float64 of shape (2 + `BINS`,): those two values (NaN if there is none), and the counts.  A bin holds
        its lower edge, the last one both; so equal values are all in the last one.
    """
    count = values.numel()
    if not count:
        return torch.cat((values.new_full((2,), math.nan), values.new_zeros(BINS)))
    values = values.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    first, end = (values == -math.inf).sum(), count - (values == math.inf).sum()
    some = end > first
    low, high = values[torch.stack((first, end - 1)).clamp_(0, count - 1)].where(some, math.nan)
    high_share = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=values.device)
    edges = (low * (1 - high_share) + high * high_share).clamp(low, high)
    inner = torch.searchsorted(values, edges[1:-1])
    counts = torch.cat((first.view(1), inner, end.view(1))).diff()
    return torch.cat((torch.stack((low, high)), counts.where(some, 0).to(torch.float64)))
