"""Statistics of each layer over steps, as heat maps, and distributions of one layer at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..statistics.quantiles import PERCENTS
from ..store.columns import Floats
from .steps import Reader, Steps, Table

ROWS = 200
"""Of a heat map: of more tensors those that are no matrices are left out, then neighbours share a row."""
WIDE = 22
"""Characters of a layer's name at the axis; the whole name is said where one points."""
TICKS = 24
"""Names at the axis."""
CHOICES = 200
"""Tensors of a kind whose distributions can be seen."""
WHOLE = "(the model)"
"""The module without a name."""
FEWER = 100
"""Steps of a distribution."""


class Quantity(NamedTuple):
    """What a heat map shows."""

    kind: str
    title: str
    describe: str
    value: Callable[[Table], Floats]
    scale: str
    """``log``, ``share`` (0 to 1) or ``sign``."""


def _rms(table: Table) -> Floats:
    """Root mean square, from whichever statistics were saved."""
    sizes = np.array([max(1, int(np.prod(shape))) for shape in table.shapes])[:, None]
    found = np.sqrt(table["mean"] ** 2 + table["std"] ** 2)
    return np.where(np.isfinite(found), found, table["l2"] / np.sqrt(sizes))


def _share(statistic: str) -> Callable[[Table], Floats]:
    def value(table: Table) -> Floats:
        sizes = np.array([int(np.prod(shape)) for shape in table.shapes], dtype=float)[:, None]
        found: Floats = table[statistic] / np.where(sizes > 0, sizes, np.nan)
        return np.where(found <= 1, found, np.nan)  # above, the shape is not known

    return value


def _shift(table: Table) -> Floats:
    return np.clip(
        np.divide(
            table["mean"], table["std"], where=table["std"] > 0, out=np.full_like(table["std"], np.nan)
        ),
        -3,
        3,
    )


STATISTICS = {
    "gradient": ("mean", "std", "l2", "nan", "inf"),
    "weight": ("mean", "std", "l2"),
    "update": ("ratio",),
    "output": ("mean", "std", "zero", "nan", "inf"),
}
"""Kind -> the statistics that heat maps are made of."""
QUANTITIES = (
    Quantity("gradient", "Gradients", "Root mean square of each parameter's gradient", _rms, "log"),
    Quantity("weight", "Weights", "Root mean square of each parameter", _rms, "log"),
    Quantity(
        "update",
        "Updates",
        "Change of each parameter by a step, relative to its size",
        lambda t: t["ratio"],
        "log",
    ),
    Quantity(
        "output", "Outputs: spread", "Standard deviation of each module's output", lambda t: t["std"], "log"
    ),
    Quantity(
        "output",
        "Outputs: shift",
        "Mean of each module's output in its standard deviations, at most 3",
        _shift,
        "sign",
    ),
    Quantity("output", "Outputs: zeros", "Share of zeros in each module's output", _share("zero"), "share"),
    Quantity(
        "gradient", "Gradients: not finite", "Share of NaN and infinite numbers", lambda t: _bad(t), "share"
    ),
    Quantity(
        "output", "Outputs: not finite", "Share of NaN and infinite numbers", lambda t: _bad(t), "share"
    ),
)


def _bad(table: Table) -> Floats:
    return np.asarray(_share("nan")(table) + _share("inf")(table))


def heat_maps(reader: Reader) -> list[dict[str, Any]]:
    """One of each quantity that was saved and is not the same everywhere."""
    tables = reader.tables(STATISTICS)
    return [plot for each in QUANTITIES if (plot := _heat_map(each, tables[each.kind])) is not None]


def _heat_map(quantity: Quantity, table: Table) -> dict[str, Any] | None:
    if not table.names or len(table.steps) < 2:
        return None
    with np.errstate(all="ignore"):
        values = quantity.value(table)
    values = np.where(np.isfinite(values), values, np.nan)
    kept = np.flatnonzero(np.isfinite(values).any(axis=1))
    if not kept.size or (quantity.scale == "share" and not np.nansum(values)):
        return None
    names = [table.names[row] or WHOLE for row in kept]
    shapes = [table.shapes[row] for row in kept]
    values = values[kept]
    if quantity.scale == "log":
        values = np.log10(values, where=values > 0, out=np.full(values.shape, np.nan))
    names, values, left = _rows(names, shapes, values)
    describe = f"{quantity.describe}, at {len(table.steps):,} saved steps from {table.steps[0]:,} to {table.steps[-1]:,}{left}"
    return {
        "kind": "plot",
        "title": quantity.title,
        "describe": describe + ("; as a power of ten" if quantity.scale == "log" else ""),
        "data": [_trace(names, table.steps, values, quantity.scale)],
        "layout": {
            "height": int(
                min(640, 110 + max(18 * len(names), 60) if len(names) < 20 else 200 + 2.2 * len(names))
            ),
            "xaxis": {"title": {"text": "step"}, "showgrid": False},
            "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False, **_ticks(names)},
        },
    }


def _trace(names: list[str], steps: Steps, values: Floats, scale: str) -> dict[str, Any]:
    said = {"log": "10<sup>%{z:.2f}</sup>", "share": "%{z:.1%}", "sign": "%{z:+.2f}"}[scale]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": steps,
        "y": names,
        "z": values,
        "hovertemplate": f"%{{y}}<br>step %{{x}}<br>{said}<extra></extra>",
        "hoverongaps": False,
    }
    if scale == "log" and np.isfinite(values).any():
        low, high = np.nanquantile(values, 0.002), np.nanquantile(values, 0.998)
        trace |= {"zmin": low, "zmax": max(high, low + 0.1)}
        powers = list(range(int(np.floor(low)), int(np.ceil(high)) + 1))
        powers = powers[:: max(1, len(powers) // 6)]
        trace["colorbar"] = {"tickvals": powers, "ticktext": [f"10<sup>{each}</sup>" for each in powers]}
    if scale == "share":
        trace |= {"zmin": 0, "zmax": 1, "colorbar": {"tickformat": ".0%"}}
    if scale == "sign":
        most = float(np.nanmax(np.abs(values))) or 1.0
        trace |= {"zmin": -most, "zmax": most, "zmid": 0}
    return trace


def _rows(names: list[str], shapes: list[tuple[int, ...]], values: Floats) -> tuple[list[str], Floats, str]:
    """At most `ROWS` of them, and what was done to the others in words."""
    count, said = len(names), ""
    if count > ROWS:
        matrix = np.array([len(shape) > 1 for shape in shapes])
        if matrix.any():
            names, values = list(itertools.compress(names, matrix)), values[matrix]
            said = f"; the {len(names):,} of {count:,} that have two dimensions or more"
    if len(names) <= ROWS:
        return names, values, said
    groups = np.array_split(np.arange(len(names)), ROWS)
    texts = [names[g[0]] + (f" to {names[g[-1]]}" if len(g) > 1 else "") for g in groups]
    with np.errstate(invalid="ignore"):
        counts = [np.isfinite(values[g]).sum(axis=0) for g in groups]
        means = [
            np.nansum(values[g], axis=0) / np.where(n, n, np.nan) for g, n in zip(groups, counts, strict=True)
        ]
    return (
        texts,
        np.array(means),
        f"{said}; {ROWS} rows of neighbours, each of the mean of about {len(names) // ROWS + 1}",
    )


def _ticks(names: Sequence[str]) -> dict[str, Any]:
    chosen = names[:: max(1, -(-len(names) // TICKS))]
    short = [name if len(name) <= WIDE else "…" + name[1 - WIDE :] for name in chosen]
    return {"tickmode": "array", "tickvals": list(chosen), "ticktext": short, "ticklabelstandoff": 4}


# -- distributions ----------------------------------------------------------------------------------

KINDS = {"weight": "Weights", "gradient": "Gradients", "output": "Outputs", "input": "Inputs"}
QUANTILES = tuple(f"quantile_{percent}" for percent in PERCENTS)
BANDS = {
    "quantiles": (
        ("quantile_1", "quantile_99"),
        ("quantile_5", "quantile_95"),
        ("quantile_25", "quantile_75"),
    )
}


def distributions(reader: Reader, first: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Of each kind the distribution of one tensor over steps, to be chosen; those named ``first`` ahead."""
    statistics = ("min", "max", "mean", "std", *QUANTILES)
    tables = reader.tables({kind: statistics for kind in KINDS}, FEWER)
    found = []
    ahead = set(first)
    for kind, title in KINDS.items():
        table = tables[kind]
        if len(table.steps) < 2:
            continue
        places = sorted(range(len(table.names)), key=lambda place: table.names[place] not in ahead)
        plots = [plot for place in places[:CHOICES] if (plot := _distribution(table, place)) is not None]
        if plots:
            label = "Of" if len(places) <= CHOICES else f"Of ({CHOICES} of {len(places):,})"
            found.append({"kind": "choice", "title": title, "label": label, "plots": plots})
    return found


def _distribution(table: Table, place: int) -> dict[str, Any] | None:
    known = {name: values[place] for name, values in table.values.items() if place < len(values)}
    known = {name: values for name, values in known.items() if np.isfinite(values).any()}
    if "quantile_50" in known:
        bands = [(known[low], known[high], f"{low[9:]} to {high[9:]} %") for low, high in BANDS["quantiles"]]
        middle, said = known["quantile_50"], "Median and middle 50, 90 and 98 %"
    elif {"mean", "std"} <= set(known):
        mean, std = known["mean"], known["std"]
        bands, middle = [(mean - std, mean + std, "one standard deviation")], mean
        said = "Mean and one standard deviation around it"
        if {"min", "max"} <= set(known):
            bands.insert(0, (known["min"], known["max"], "least to greatest"))
            said += ", least and greatest value"
    else:
        return None
    name = table.names[place] or WHOLE
    data = [trace for low, high, label in bands for trace in _band(table.steps, low, high, label)]
    data.append(
        {
            "type": "scatter",
            "x": table.steps,
            "y": middle,
            "name": said.split(" ")[0].lower(),
            "meta": {"color": 0},
        }
    )
    layout = {"showlegend": False, "xaxis": {"title": {"text": "step"}}}
    return {"title": name, "describe": f"{said} of {name}", "data": data, "layout": layout}


def _band(steps: Steps, low: Floats, high: Floats, label: str) -> list[dict[str, Any]]:
    common = {
        "type": "scatter",
        "mode": "lines",
        "x": steps,
        "name": label,
        "meta": {"color": 0},
        "line": {"width": 0},
    }
    return [{**common, "y": low, "hoverinfo": "skip"}, {**common, "y": high, "fill": "tonexty"}]
