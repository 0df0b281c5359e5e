"""Losses and metrics over steps, of one run or of several."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwise.errors import InputError
from loopwise.sections import Block, choice, plot

from ..read.saved_run import SavedRun
from ..read.tables import Steps
from ..read.values import Series
from ..statistics.thin import thinned
from ..store.columns import Floats

SMOOTHED = 100
"""Number of points from which on a smoothed line is drawn over a faint line of the values."""
SEPARATE = 36
"""Largest number of metrics with a plot each; with more, the page has a menu of metrics."""
LOSSES = "Losses"
"""Title of the plot of the losses."""


def smoothed(values: Floats) -> Floats:
    """Return the mean of the finite values around each point, over a fortieth of the line, at least 7 points."""
    width = min(max(7, len(values) // 40), len(values) - 1) | 1
    finite = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    count = np.convolve(finite.astype(float), kernel, "same")
    return np.asarray(total / np.where(count > 0, count, np.nan))


Read = Callable[[str], Mapping[str, Series]]
"""Function from a scalar to its steps and values by mode; there are none of a tensor."""


def by_mode(saved: SavedRun, name: str) -> Mapping[str, Series]:
    """Return steps over all modes and values of a scalar by mode; nothing for a tensor, or statistics of one."""
    try:
        return saved.series_by_mode(name)
    except InputError:
        return {}


def blocks(saved: SavedRun, read: Read, *others: SavedRun) -> list[Block]:
    """Return a plot of the losses and one of each metric, with the lines of other runs in the same plots.

    Args:
        saved: the run.
        read: reads a scalar of the run.
        others: the other runs.
    """
    shown = [_plot(LOSSES, saved.names(collection="losses"), read, others)]
    metrics = [_plot(name, [name], read, others) for name in saved.names(collection="metrics")]
    plots = [block for block in metrics if block]
    shown += [choice("Metrics", "Metric", plots)] if len(plots) > SEPARATE else plots
    return [block for block in shown if block]


def _plot(title: str, names: list[str], read: Read, others: Sequence[SavedRun]) -> Block | None:
    lines = list(_lines(names, read, ""))
    for other in others:
        known = set(other.names())
        of_other = functools.partial(by_mode, other)
        lines += _lines([name for name in names if name in known], of_other, f" of {other.name}")
    if not lines:
        return None
    data: list[dict[str, Any]] = []
    for number, (label, steps, values) in enumerate(lines):
        data += _traces(label, steps, values, number)
    finite = np.concatenate([values[np.isfinite(values)] for _, _, values in lines])
    wide = finite.size > 0 and finite.min() > 0 and finite.max() > 100 * finite.min()
    layout = {
        "showlegend": len(lines) > 1,
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"type": "log" if wide else "linear"},
    }
    describe = "; ".join(_described(*line) for line in lines[:4])
    return plot(title, describe + (f"; and {len(lines) - 4} more" if len(lines) > 4 else ""), data, layout)


def _lines(names: list[str], read: Read, of: str) -> Iterator[tuple[str, Steps, Floats]]:
    """Yield label, steps over all modes and values of each scalar in each mode."""
    for name in names:
        for mode, (steps, values) in read(name).items():
            yield f"{name}, {mode}{of}", steps, values


def _traces(label: str, steps: Steps, values: NDArray[np.float64], number: int) -> list[dict[str, Any]]:
    common = {"type": "scatter", "meta": {"color": number}, "legendgroup": label, "name": label}
    few = len(steps) < 30
    x, y = thinned(steps, values)
    line = {**common, "x": x, "y": y, "mode": "lines+markers" if few else "lines", "marker": {"size": 4}}
    if len(steps) < SMOOTHED:
        return [line]
    x, mean = thinned(steps, smoothed(values))
    faint = {**line, "opacity": 0.35, "line": {"width": 1}, "showlegend": False}
    faint["meta"] = {"color": number, "smooth": "raw"}
    mean_line = {
        **common,
        "name": f"{label}, smoothed",
        "x": x,
        "y": mean,
        "mode": "lines",
        "line": {"width": 2},
    }
    return [faint, mean_line | {"meta": {"color": number, "smooth": "mean"}}]


def _described(label: str, steps: Steps, values: Floats) -> str:
    """Return a line in words."""
    bad = np.flatnonzero(~np.isfinite(values))
    finite = values[np.isfinite(values)]
    text = f"{label}: {len(steps):,} steps"
    if finite.size:
        text += (
            f", {finite[0]:.4g} first, {finite[-1]:.4g} last, from {finite.min():.4g} to {finite.max():.4g}"
        )
    return text + (f", NaN or infinite at {bad.size:,} steps from {steps[bad[0]]:,} on" if bad.size else "")
