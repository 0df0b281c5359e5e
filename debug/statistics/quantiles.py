"""Quantiles and histograms of single tensors, from their sorted values."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set

import numpy as np
import torch

from .chunk_sums import Partials, real, uploaded
from .sums import Flat

PERCENTS = (1, 5, 25, 50, 75, 95, 99)
"""Quantiles of each tensor."""
BINS = 64
"""Bins of a histogram."""


def distributions(flats: Sequence[Flat], names: Set[str]) -> Partials:
    """Compute quantiles and histograms of tensors.

    Args:
        flats: at least one tensor, all on one device.
        names: ``quantiles``, ``histogram`` or both.

    Returns:
        ``quantiles``: float64 of shape (tensors, quantiles), interpolated linearly as by `torch.quantile`; NaN if
        a tensor has no values or contains NaN.  ``histogram``: see `histogram`.
    """
    device = flats[0].values.device
    last = uploaded([values.numel() + zeros - 1 for values, zeros in flats], torch.float64, device)[:, None]
    places = last * uploaded([percent / 100 for percent in PERCENTS], torch.float64, device)
    wanted = torch.cat((places.floor(), places.ceil(), last), dim=1).to(torch.int64)
    picked, histograms = [], []
    for flat, indices in zip(flats, wanted, strict=True):
        values = _ordered(flat)
        if "quantiles" in names:
            none = torch.full(indices.shape, math.nan, dtype=torch.float64, device=device)
            picked.append(values[indices].to(torch.float64) if values.numel() else none)
        if "histogram" in names:
            histograms.append(histogram(values))
    results = {"histogram": torch.stack(histograms)} if histograms else {}
    if picked:
        below, above, greatest = torch.split(torch.stack(picked), [len(PERCENTS), len(PERCENTS), 1], dim=1)
        share = places - places.floor()
        between = torch.where(
            below == above, below, below * (1 - share) + above * share
        )  # also correct for infinities
        results["quantiles"] = between.masked_fill(greatest.isnan(), math.nan)
    return results


def _ordered(flat: Flat) -> torch.Tensor:
    """Return a copy of all values, ascending, NaN last."""
    values = real(flat.values)
    if flat.zeros:
        values = torch.cat((values, values.new_zeros(flat.zeros)))
    if values.device.type == "cpu":  # NumPy sorts 5 million in 50 ms, torch in 680 ms (AMD EPYC, AVX2)
        return torch.from_numpy(np.sort(values.numpy()))
    return values.sort().values


def histogram(values: torch.Tensor) -> torch.Tensor:
    """Count values in equal bins between the smallest and the largest finite value.

    Args:
        values: ascending values, NaN last; they are overwritten.

    Returns:
        float64 of shape (2 + `BINS`,): those two values (NaN if there are none), and the counts.  A bin includes
        its lower edge, and the last bin its upper edge too; equal values are all in the last bin.
    """
    count = values.numel()
    if not count:
        return torch.cat((values.new_full((2,), math.nan), values.new_zeros(BINS))).to(torch.float64)
    values.nan_to_num_(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    first = (values == -math.inf).count_nonzero()
    end = count - (values == math.inf).count_nonzero()
    some = end > first
    low, high = (
        values[torch.stack((first, end - 1)).clamp_(0, count - 1)].to(torch.float64).where(some, math.nan)
    )
    share = torch.linspace(0, 1, BINS + 1, dtype=torch.float64, device=values.device)
    edges = (low * (1 - share) + high * share).clamp(low, high)[1:-1]
    rounded = edges.to(values.dtype)
    rounded = torch.where(rounded < edges, rounded.nextafter(torch.full_like(rounded, math.inf)), rounded)
    counts = torch.cat((first.view(1), torch.searchsorted(values, rounded), end.view(1))).diff()
    return torch.cat((torch.stack((low, high)), counts.where(some, 0).to(torch.float64)))
