"""Thin a series for a plot."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

POINTS = 2000
"""Points of a plotted line."""
Steps = NDArray[np.int64]
Floats = NDArray[np.float64]


def thinned(steps: Steps, values: Floats, points: int = POINTS) -> tuple[Steps, Floats]:
    """Return up to ``points`` points that show the same line: the smallest and the largest one of each piece."""
    if len(steps) <= points:
        return steps, values
    edges = np.linspace(0, len(steps), points // 2 + 1).astype(int)
    kept: set[int] = set()
    for start, end in itertools.pairwise(edges):
        piece = values[start:end]
        if np.isfinite(piece).any():
            finite = np.where(np.isfinite(piece), piece, np.nan)
            kept |= {start + int(np.nanargmin(finite)), start + int(np.nanargmax(finite))}
        else:
            kept.add(start)
    chosen = np.array(sorted({0, len(steps) - 1} | kept))
    return steps[chosen], values[chosen]
