"""The machine, as the page shows it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...rules.profile.series import Floats, Table
from ...statistics.thin import thinned
from .. import summary
from ..reading import Session

COLUMNS = 400
"""Of the heat map of cores; each is a mean."""
UNITS = {
    "process_cpu": ("processor of the process", "% of a core", 1.0),
    "process_memory": ("memory of the process", "GiB", 2**-30),
    "cpu": ("processors", "%", 1.0),
    "iowait": ("waiting for disks", "%", 1.0),
    "memory": ("memory", "GiB", 2**-30),
    "swap": ("swap", "GiB", 2**-30),
    "disk_read": ("read from disks", "MB/s", 1e-6),
    "disk_write": ("written to disks", "MB/s", 1e-6),
    "net_in": ("received", "MB/s", 1e-6),
    "net_out": ("sent", "MB/s", 1e-6),
}
"""Column -> what it is called, its unit, and what it is multiplied with."""
PLOTS = {
    "Processors": ("cpu", "process_cpu", "iowait"),
    "Memory": ("memory", "process_memory", "swap"),
    "Disks": ("disk_read", "disk_write"),
    "Network": ("net_in", "net_out"),
}


def blocks(found: list[Session]) -> list[dict[str, Any]]:
    """Tables and plots of each session with samples."""
    made: list[dict[str, Any]] = []
    hosts = [session for session in found if "cpu" in session.header["columns"] and len(session.system())]
    for session in hosts:
        table = session.system()
        title = "" if len(hosts) == 1 else f", {session.header['host']}, from rank {session.rank}"
        made += _session(session, table, title, float(table["time"][0]))
    return made + _processes(found)


def _session(session: Session, table: Table, title: str, start: float) -> list[dict[str, Any]]:
    made = [_usage(session, table, title)]
    for name, columns in PLOTS.items():
        if any(table[column].any() for column in columns):
            made.append(_lines(f"{name}{title}", table, {c: UNITS[c] for c in columns}, start))
    cores = [c for c in table.columns if c.removeprefix("cpu").isdecimal()]
    if len(cores) > 1 and len(table) > 1:
        made.append(_cores(f"Cores{title}", table, cores, start))
    devices = [name for name in session.header["devices"] if name in table]
    for what, suffix, unit, scale in (
        ("Device utilization", "", "%", 1.0),
        ("Device memory", "_memory", "GiB", 2**-30),
        ("Device power", "_power", "W", 1.0),
    ):
        if devices:
            of = {f"{name}{suffix}": (name, unit, scale) for name in devices}
            made.append(_lines(f"{what}{title}", table, of, start))
    return made


def _usage(session: Session, table: Table, title: str) -> dict[str, Any]:
    rows = []
    for column, values in summary.usage(table, session.header["totals"]).items():
        name, _, percent = column.partition(", ")
        if name.removeprefix("cpu").isdecimal():
            continue
        label, unit, scale = UNITS.get(name, (name, _unit(name), 2**-30 if name.endswith("_memory") else 1.0))
        if percent:
            unit, scale = "%", 1.0
        rows.append([label, unit, *(_number(scale * value) for value in values.values())])
    missed = int(table["missed"][-1])
    rows.append(["samples", "count", len(table), None, None, None, None])
    rows.append(["samples that were missed", "count", missed, None, None, None, None])
    columns = ["", "unit", *summary.PERCENTILES]
    return {"kind": "table", "title": f"Use of the machine{title}", "columns": columns, "rows": rows}


def _unit(column: str) -> str:
    return "GiB" if column.endswith("_memory") else "W" if column.endswith("_power") else "%"


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _lines(
    title: str, table: Table, columns: dict[str, tuple[str, str, float]], start: float
) -> dict[str, Any]:
    """Columns over the seconds since the first sample; their names, units and factors."""
    data, said = [], []
    unit = next(iter(columns.values()))[1]
    for column, (label, own, scale) in columns.items():
        values: Floats = scale * table[column]
        index, shown = thinned(np.arange(len(table)), values)
        name = label if own == unit else f"{label}, {own}"
        x = table["time"][index] - start
        data.append({"type": "scatter", "mode": "lines", "name": name, "x": x, "y": shown})
        finite = values[np.isfinite(values)]
        if len(finite):
            said.append(f"{name}: mean {finite.mean():.3g}, most {finite.max():.3g}")
    layout = {
        "showlegend": True,
        "xaxis": {"title": {"text": "seconds"}},
        "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
    }
    return {"kind": "plot", "title": title, "describe": "; ".join(said), "data": data, "layout": layout}


def _cores(title: str, table: Table, cores: list[str], start: float) -> dict[str, Any]:
    edges = np.unique(np.linspace(0, len(table), COLUMNS + 1).astype(int))
    counts = np.diff(edges)
    heat = np.stack([np.add.reduceat(table[core], edges[:-1]) / counts for core in cores])
    x = table["time"][edges[:-1]] - start
    trace = {"type": "heatmap", "x": x, "y": cores, "z": heat, "zmin": 0, "zmax": 100}
    trace["colorbar"] = {"title": {"text": "%"}}
    means = heat.mean(axis=1)
    describe = f"Use of {len(cores)} cores: means from {means.min():.0f} to {means.max():.0f} %"
    layout = {"xaxis": {"title": {"text": "seconds"}}}
    return {"kind": "plot", "title": title, "describe": describe, "data": [trace], "layout": layout}


def _processes(found: list[Session]) -> list[dict[str, Any]]:
    """With several ranks, each one's process."""
    if len({session.rank for session in found}) < 2:
        return []
    rows = []
    for session in found:
        table = session.system()
        if len(table):
            cpu, memory = table["process_cpu"], table["process_memory"]
            numbers = [round(float(cpu.mean()), 1), _number(float(memory.max()) / 2**30)]
            rows.append(
                [session.rank, session.header["host"], len(table), int(table["missed"][-1]), *numbers]
            )
    columns = ["rank", "machine", "samples", "missed", "mean % of a core", "most memory, GiB"]
    return [{"kind": "table", "title": "Processes", "columns": columns, "rows": rows}]
