"""Histograms of one tensor at a time, with a slider over steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loopwise.sections import Block, plot

from ..read.saved_run import SavedRun
from ..read.tables import Table
from ..statistics.table import STATISTICS
from .distributions import KINDS, choices
from .layers import WHOLE

FRAMES = 30
"""Steps of a histogram."""
ENDS, BINS = STATISTICS["histogram"].columns[:2], STATISTICS["histogram"].columns[2:]


def blocks(saved: SavedRun, first: Sequence[str] = ()) -> list[Block]:
    """Return for each kind a choice of tensors, each with its histograms; none if no histograms were saved.

    Args:
        saved: the run.
        first: names of tensors that stand before the others.
    """
    tables = saved.tables({kind: (*ENDS, *BINS) for kind in KINDS}, most=FRAMES)
    return choices(tables, "histogram", _histogram, first)


def _histogram(table: Table, row: int) -> Block | None:
    ends = np.stack([table[end][row] for end in ENDS], axis=1)
    counts = np.stack([table[column][row] for column in BINS], axis=1)
    known = np.isfinite(ends).all(axis=1) & np.isfinite(counts).all(axis=1)
    if not known.any():
        return None
    steps = table.steps[known]
    name = table.names[row] or WHOLE
    frames = {"label": "step", "values": steps, "range": ends[known], "y": counts[known].astype(np.int64)}
    describe = f"Number of values of {name} by size, at {len(steps):,} saved steps from {steps[0]:,} to {steps[-1]:,}"
    layout = {"showlegend": False, "bargap": 0, "xaxis": {"title": {"text": "value"}}}
    layout["yaxis"] = {"title": {"text": "count"}, "rangemode": "tozero"}
    return plot(name, describe, [{"type": "bar", "name": name, "x": [], "y": []}], layout, frames)
