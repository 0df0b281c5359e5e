"""Heat maps of the statistics of all layers over steps."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from loopwise.sections import Block, plot
from loopwise.sections import layers as layers_block

from ..read.saved_run import SavedRun
from ..read.tables import Steps, Table
from ..store.columns import Floats

ROWS = 200
"""Largest number of rows of a heat map.  With more tensors, first non-matrices are left out, then neighbours share a row."""
WHOLE = "(the model)"
"""Label of the root module, which has no name."""


class Quantity(NamedTuple):
    """Quantity that one heat map shows."""

    kind: str
    title: str
    describe: str
    value: str | Callable[[Table], Floats]
    """A statistic, or a function of a table."""
    scale: str
    """``log``, ``share`` (0 to 1) or ``sign``."""


def _rms(table: Table) -> Floats:
    """Return the root mean square, from whichever statistics were saved."""
    sizes = np.array([max(1, int(np.prod(shape))) for shape in table.shapes])[:, None]
    rms = np.sqrt(table["mean"] ** 2 + table["std"] ** 2)
    return np.where(np.isfinite(rms), rms, table["l2"] / np.sqrt(sizes))


def _share(statistic: str) -> Callable[[Table], Floats]:
    def value(table: Table) -> Floats:
        sizes = np.array([int(np.prod(shape)) for shape in table.shapes], dtype=float)[:, None]
        share: Floats = table[statistic] / np.where(sizes > 0, sizes, np.nan)
        return np.where(share <= 1, share, np.nan)  # a larger one means that the shape is not known

    return value


def _shift(table: Table) -> Floats:
    mean, std = table["mean"], table["std"]
    return np.clip(np.divide(mean, std, where=std > 0, out=np.full_like(std, np.nan)), -3, 3)


def _not_finite(table: Table) -> Floats:
    return np.asarray(_share("nan")(table) + _share("inf")(table))


STATISTICS = {
    "gradient": ("mean", "std", "l2", "nan", "inf"),
    "weight": ("mean", "std", "l2"),
    "update": ("ratio",),
    "output": ("mean", "std", "zero", "nan", "inf"),
}
"""Kind -> statistics that heat maps are made of."""
PARAMETERS = ("gradient", "weight", "update")
"""Kinds of tensors that are named after parameters."""
NOT_FINITE = "Share of NaN and infinite numbers"
QUANTITIES = (
    Quantity("gradient", "Gradients", "Root mean square of each parameter's gradient", _rms, "log"),
    Quantity("weight", "Weights", "Root mean square of each parameter", _rms, "log"),
    Quantity("update", "Updates", "Change of each parameter by a step, relative to its size", "ratio", "log"),
    Quantity("output", "Outputs: spread", "Standard deviation of each module's output", "std", "log"),
    Quantity(
        "output",
        "Outputs: shift",
        "Mean of each module's output in its standard deviations, at most 3",
        _shift,
        "sign",
    ),
    Quantity("output", "Outputs: zeros", "Share of zeros in each module's output", _share("zero"), "share"),
    Quantity("gradient", "Gradients: not finite", NOT_FINITE, _not_finite, "share"),
    Quantity("output", "Outputs: not finite", NOT_FINITE, _not_finite, "share"),
)


def blocks(saved: SavedRun) -> list[Block]:
    """Return a list of the layers, and a heat map of each quantity that was saved and is not zero everywhere."""
    tables = saved.tables(STATISTICS)
    maps = [
        block for quantity in QUANTITIES if (block := _heat_map(quantity, tables[quantity.kind])) is not None
    ]
    return [layers_block("Layer", layer_names(tables)), *maps] if maps else []


def layer_names(tables: Mapping[str, Table]) -> list[str]:
    """Return the modules whose outputs or parameters tables have, in the order of the outputs."""
    modules = tables["output"].names
    owners = [name.rpartition(".")[0] for kind in PARAMETERS for name in tables[kind].names]
    return [name or WHOLE for name in dict.fromkeys([*modules, *owners])]


def _heat_map(quantity: Quantity, table: Table) -> Block | None:
    if not table.names or len(table.steps) < 2:
        return None
    with np.errstate(all="ignore"):
        value = quantity.value
        values = table[value] if isinstance(value, str) else value(table)
    values = np.where(np.isfinite(values), values, np.nan)
    known = np.flatnonzero(np.isfinite(values).any(axis=1))
    if not known.size or (quantity.scale == "share" and not np.nansum(values)):
        return None
    names = [table.names[row] or WHOLE for row in known]
    shapes = [table.shapes[row] for row in known]
    values = values[known]
    if quantity.scale == "log":
        values = np.log10(values, where=values > 0, out=np.full(values.shape, np.nan))
    names, values, left_out = _rows(names, shapes, values)
    steps = f"{len(table.steps):,} saved steps from {table.steps[0]:,} to {table.steps[-1]:,}"
    power = "; as a power of ten" if quantity.scale == "log" else ""
    height = 110 + max(18 * len(names), 60) if len(names) < 20 else 200 + 2.2 * len(names)
    layout = {
        "height": int(min(640, height)),
        "xaxis": {"title": {"text": "step"}, "showgrid": False},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
    }
    describe = f"{quantity.describe}, at {steps}{left_out}{power}"
    return plot(quantity.title, describe, [_trace(names, table.steps, values, quantity)], layout)


def _trace(names: list[str], steps: Steps, values: Floats, quantity: Quantity) -> dict[str, Any]:
    scale = quantity.scale
    shown = {"log": "10<sup>%{z:.2f}</sup>", "share": "%{z:.1%}", "sign": "%{z:+.2f}"}[scale]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": steps,
        "y": names,
        "z": values,
        "hovertemplate": f"%{{y}}<br>step %{{x}}<br>{shown}<extra></extra>",
        "hoverongaps": False,
        "meta": {"of": quantity.title, "scale": "log" if scale == "log" else "linear"},
    }
    if scale == "log" and np.isfinite(values).any():
        low, high = np.nanquantile(values, 0.002), np.nanquantile(values, 0.998)
        trace |= {"zmin": low, "zmax": max(high, low + 0.1)}
        powers = list(range(int(np.floor(low)), int(np.ceil(high)) + 1))
        powers = powers[:: max(1, len(powers) // 6)]
        trace["colorbar"] = {"tickvals": powers, "ticktext": [f"10<sup>{power}</sup>" for power in powers]}
    if scale == "share":
        trace |= {"zmin": 0, "zmax": 1, "colorbar": {"tickformat": ".0%"}}
    if scale == "sign":
        most = float(np.nanmax(np.abs(values))) or 1.0
        trace |= {"zmin": -most, "zmax": most, "zmid": 0}
    return trace


def _rows(names: list[str], shapes: list[tuple[int, ...]], values: Floats) -> tuple[list[str], Floats, str]:
    """Return at most ``ROWS`` names and rows of values, and a text about tensors that were left out or joined."""
    count, words = len(names), ""
    if count > ROWS:
        matrix = np.array([len(shape) > 1 for shape in shapes])
        if matrix.any():
            names, values = list(itertools.compress(names, matrix)), values[matrix]
            words = f"; the {len(names):,} of {count:,} that have two dimensions or more"
    if len(names) <= ROWS:
        return names, values, words
    groups = np.array_split(np.arange(len(names)), ROWS)
    texts = [names[g[0]] + (f" to {names[g[-1]]}" if len(g) > 1 else "") for g in groups]
    with np.errstate(invalid="ignore"):
        counts = [np.isfinite(values[g]).sum(axis=0) for g in groups]
        means = [
            np.nansum(values[g], axis=0) / np.where(n, n, np.nan) for g, n in zip(groups, counts, strict=True)
        ]
    most = len(names) // ROWS + 1
    return texts, np.array(means), f"{words}; {ROWS} rows of neighbours, each of the mean of about {most}"
