"""Losses and metrics over steps, of one run or of two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwise.errors import InputError

from ..read.saved_run import SavedRun
from ..statistics.thin import thinned
from ..store.columns import Floats
from .steps import Reader, Steps

SMOOTHED = 200
"""Points from which on a line is drawn smoothed, and faint as it is."""
SEPARATE = 6
"""Metrics that have a plot each; of more, one is chosen."""


def smoothed(values: Floats) -> Floats:
    """Mean over a fiftieth of the line around each point, of what is finite."""
    width = max(3, len(values) // 50) | 1
    finite = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(finite, values, 0.0), kernel, "same")
    count = np.convolve(finite.astype(float), kernel, "same")
    return np.asarray(total / np.where(count > 0, count, np.nan))


def scalars(
    saved: SavedRun, reader: Reader, beside: tuple[SavedRun, Reader] | None = None
) -> list[dict[str, Any]]:
    """A plot of the losses, and one of each metric; ``beside`` is another run and its reader."""
    found = [_plot("Losses", saved.names(collection="losses"), saved, reader, beside)]
    metrics = [_plot(name, [name], saved, reader, beside) for name in saved.names(collection="metrics")]
    shown = [plot for plot in metrics if plot]
    if len(shown) > SEPARATE:
        found.append({"kind": "choice", "title": "Metrics", "label": "Metric", "plots": shown})
    else:
        found += shown
    return [block for block in found if block]


def _plot(
    title: str, names: list[str], saved: SavedRun, reader: Reader, beside: tuple[SavedRun, Reader] | None
) -> dict[str, Any] | None:
    lines = list(_lines(names, saved, reader, ""))
    if beside is not None:
        other, others = beside
        known = set(other.names())
        of = f" of {other.path.rstrip('/').rsplit('/', 1)[-1]}"
        lines += _lines([name for name in names if name in known], other, others, of)
    if not lines:
        return None
    data: list[dict[str, Any]] = []
    for number, (label, steps, values) in enumerate(lines):
        data += _traces(label, steps, values, number)
    every = np.concatenate([values[np.isfinite(values)] for _, _, values in lines])
    wide = every.size > 0 and every.min() > 0 and every.max() > 100 * every.min()
    layout = {
        "showlegend": len(lines) > 1,
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"type": "log" if wide else "linear"},
    }
    describe = "; ".join(_said(*line) for line in lines[:4]) + (
        f"; and {len(lines) - 4} more" if len(lines) > 4 else ""
    )
    return {"kind": "plot", "title": title, "describe": describe, "data": data, "layout": layout}


def _lines(names: list[str], saved: SavedRun, reader: Reader, of: str) -> Iterator[tuple[str, Steps, Floats]]:
    """Label, steps over all modes and values of each number in each mode; tensors are no lines."""
    modes = {mode: np.array(reader.steps(mode), np.int64) for mode in reader.index.modes}
    for name in names:
        try:
            steps, values = saved.series(name)
        except InputError:  # a tensor, or statistics of one
            continue
        for mode, of_mode in modes.items():
            here = np.isin(steps, of_mode)
            if here.any():
                yield f"{name}, {mode}{of}", steps[here], values[here]


def _traces(label: str, steps: Steps, values: NDArray[np.float64], number: int) -> list[dict[str, Any]]:
    common = {"type": "scatter", "meta": {"color": number}, "legendgroup": label, "name": label}
    few = len(steps) < 30
    at, shown = thinned(steps, values)
    line = {**common, "x": at, "y": shown, "mode": "lines+markers" if few else "lines", "marker": {"size": 4}}
    if len(steps) < SMOOTHED:
        return [line]
    at, mean = thinned(steps, smoothed(values))
    faint = {**line, "opacity": 0.35, "line": {"width": 1}, "showlegend": False, "name": f"{label}, as it is"}
    return [faint, {**common, "x": at, "y": mean, "mode": "lines", "line": {"width": 2}}]


def _said(label: str, steps: Steps, values: Floats) -> str:
    """A line in words."""
    bad = np.flatnonzero(~np.isfinite(values))
    finite = values[np.isfinite(values)]
    text = f"{label}: {len(steps):,} steps"
    if finite.size:
        text += (
            f", {finite[0]:.4g} first, {finite[-1]:.4g} last, from {finite.min():.4g} to {finite.max():.4g}"
        )
    return text + (f", NaN or infinite at {bad.size:,} steps from {steps[bad[0]]:,} on" if bad.size else "")
