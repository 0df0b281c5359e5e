"""Distributions of one tensor at a time over steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from loopwise.sections import Block, choice

from ..read.saved_run import SavedRun
from ..read.tables import Steps, Table
from ..statistics.quantiles import PERCENTS
from ..store.columns import Floats
from .layers import WHOLE

CHOICES = 200
"""Largest number of tensors of a kind whose distributions can be chosen."""
FEWER = 100
"""Steps of a distribution."""
KINDS = {"weight": "Weights", "gradient": "Gradients", "output": "Outputs", "input": "Inputs"}
"""Kind -> title of its plot."""
STATISTICS = ("min", "max", "mean", "std", *(f"quantile_{percent}" for percent in PERCENTS))
BANDS = ((1, 99), (5, 95), (25, 75))
"""Percentiles at the lower and upper edge of each band."""


def blocks(saved: SavedRun, first: Sequence[str] = ()) -> list[Block]:
    """Return for each kind a choice of tensors, each with a plot of its distribution over steps.

    Args:
        saved: the run.
        first: names of tensors that stand before the others.
    """
    tables = saved.tables({kind: STATISTICS for kind in KINDS}, most=FEWER)
    several = {kind: table for kind, table in tables.items() if len(table.steps) >= 2}
    return choices(several, "distribution", _distribution, first)


def choices(
    tables: Mapping[str, Table],
    what: str,
    draw: Callable[[Table, int], Block | None],
    first: Sequence[str] = (),
) -> list[Block]:
    """Return for each kind a choice of tensors, each with a plot.

    Args:
        tables: kind -> its table.
        what: the plots, in a word.
        draw: function from a table and a row to the plot of the tensor; ``None``: there is nothing to see.
        first: names of tensors that stand before the others.
    """
    shown, ahead = [], set(first)
    for kind, title in KINDS.items():
        if (table := tables.get(kind)) is None:
            continue
        rows = sorted(range(len(table.names)), key=lambda row: table.names[row] not in ahead)
        plots = [plot for row in rows[:CHOICES] if (plot := draw(table, row)) is not None]
        if plots:
            label = "Of" if len(rows) <= CHOICES else f"Of ({CHOICES} of {len(rows):,})"
            shown.append(choice(f"{title}: {what}", label, plots, of_layers=True))
    return shown


def _distribution(table: Table, row: int) -> Block | None:
    known = {name: values[row] for name, values in table.values.items() if row < len(values)}
    known = {name: values for name, values in known.items() if np.isfinite(values).any()}
    if "quantile_50" in known:
        bands = [
            (known[f"quantile_{low}"], known[f"quantile_{high}"], f"{low} to {high} %")
            for low, high in BANDS
            if {f"quantile_{low}", f"quantile_{high}"} <= set(known)
        ]
        middle, words = known["quantile_50"], "Median and middle 50, 90 and 98 %"
    elif {"mean", "std"} <= set(known):
        mean, std = known["mean"], known["std"]
        bands, middle = [(mean - std, mean + std, "one standard deviation")], mean
        words = "Mean and one standard deviation around it"
        if {"min", "max"} <= set(known):
            bands.insert(0, (known["min"], known["max"], "least to greatest"))
            words += ", least and greatest value"
    else:
        return None
    name = table.names[row] or WHOLE
    line = {"type": "scatter", "x": table.steps, "y": middle, "meta": {"color": 0}}
    data = [trace for low, high, label in bands for trace in _band(table.steps, low, high, label)]
    data.append({**line, "name": words.split(" ")[0].lower()})
    layout = {"showlegend": False, "xaxis": {"title": {"text": "step"}}}
    return {"title": name, "describe": f"{words} of {name}", "data": data, "layout": layout}


def _band(steps: Steps, low: Floats, high: Floats, label: str) -> list[dict[str, Any]]:
    common = {"type": "scatter", "mode": "lines", "x": steps, "name": label, "meta": {"color": 0}}
    common["line"] = {"width": 0}
    return [{**common, "y": low, "hoverinfo": "skip"}, {**common, "y": high, "fill": "tonexty"}]
