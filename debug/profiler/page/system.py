"""Use of the machine, as the page shows it."""

from __future__ import annotations

import numpy as np

from loopwise.sections import Block, plot, table

from ...rules.profile.series import Floats, Table
from ...statistics.thin import thinned
from .. import summary
from ..reading import Session

COLUMNS = 400
"""Largest number of columns of the heat map of cores; each column is the mean over some samples."""
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
"""Column -> label, unit, and factor of its numbers."""
PLOTS = {
    "Processors": ("cpu", "process_cpu", "iowait"),
    "Memory": ("memory", "process_memory", "swap"),
    "Disks": ("disk_read", "disk_write"),
    "Network": ("net_in", "net_out"),
}
DEVICES = {
    "Device utilization": ("", "%", 1.0),
    "Device memory": ("_memory", "GiB", 2**-30),
    "Device power": ("_power", "W", 1.0),
}
"""Title of a plot -> ending of the device's column, unit, and factor of its numbers."""


def blocks(sessions: list[Session]) -> list[Block]:
    """Return tables and plots of each session with samples of the machine."""
    made: list[Block] = []
    hosts = [session for session in sessions if "cpu" in session.header["columns"] and len(session.system)]
    for session in hosts:
        samples = session.system
        title = "" if len(hosts) == 1 else f", {session.header['host']}, from rank {session.rank}"
        made += _session(session, samples, title)
    return made + _processes(sessions)


def _session(session: Session, samples: Table, title: str) -> list[Block]:
    made = [_usage(session, samples, title)]
    for name, columns in PLOTS.items():
        if any(samples[column].any() for column in columns):
            made.append(_lines(f"{name}{title}", samples, {c: UNITS[c] for c in columns}))
    cores = [c for c in samples.columns if c.removeprefix("cpu").isdecimal()]
    if len(cores) > 1 and len(samples) > 1:
        made.append(_cores(f"Cores{title}", samples, cores))
    devices = [name for name in session.header["devices"] if name in samples]
    for what, (suffix, unit, scale) in DEVICES.items() if devices else ():
        of = {f"{name}{suffix}": (name, unit, scale) for name in devices}
        made.append(_lines(f"{what}{title}", samples, of))
    return made


def _usage(session: Session, samples: Table, title: str) -> Block:
    rows = []
    for column, values in summary.usage(samples, session.header["totals"]).items():
        name, _, percent = column.partition(", ")
        if name.removeprefix("cpu").isdecimal():
            continue
        device = next(of for of in reversed(DEVICES.values()) if name.endswith(of[0]))
        label, unit, scale = UNITS.get(name, (name, *device[1:]))
        if percent:
            unit, scale = "%", 1.0
        rows.append([label, unit, *(_number(scale * value) for value in values.values())])
    counts = {"samples": len(samples), "samples that were missed": int(samples["missed"][-1])}
    rows += [[label, "count", count, None, None, None, None] for label, count in counts.items()]
    columns = ["", "unit", *summary.PERCENTILES]
    return table(f"Use of the machine{title}", columns, rows)


def _number(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _lines(title: str, samples: Table, columns: dict[str, tuple[str, str, float]]) -> Block:
    """Return a plot of columns over the seconds since the first sample.

    Args:
        title: title of the plot.
        samples: the samples.
        columns: column -> label, unit, and factor of its numbers.
    """
    data, described = [], []
    unit = next(iter(columns.values()))[1]
    for column, (label, own, scale) in columns.items():
        values: Floats = scale * samples[column]
        index, shown = thinned(np.arange(len(samples)), values)
        name = label if own == unit else f"{label}, {own}"
        x = samples["time"][index] - samples["time"][0]
        data.append({"type": "scatter", "mode": "lines", "name": name, "x": x, "y": shown})
        finite = values[np.isfinite(values)]
        if len(finite):
            described.append(f"{name}: mean {finite.mean():.3g}, most {finite.max():.3g}")
    layout = {
        "showlegend": True,
        "xaxis": {"title": {"text": "seconds"}},
        "yaxis": {"title": {"text": unit}, "rangemode": "tozero"},
    }
    return plot(title, "; ".join(described), data, layout)


def _cores(title: str, samples: Table, cores: list[str]) -> Block:
    edges = np.unique(np.linspace(0, len(samples), COLUMNS + 1).astype(int))
    counts = np.diff(edges)
    heat = np.stack([np.add.reduceat(samples[core], edges[:-1]) / counts for core in cores])
    x = samples["time"][edges[:-1]] - samples["time"][0]
    trace = {"type": "heatmap", "x": x, "y": cores, "z": heat, "zmin": 0, "zmax": 100}
    trace["colorbar"] = {"title": {"text": "%"}}
    means = heat.mean(axis=1)
    describe = f"Use of {len(cores)} cores: means from {means.min():.0f} to {means.max():.0f} %"
    layout = {"xaxis": {"title": {"text": "seconds"}}}
    return plot(title, describe, [trace], layout)


def _processes(sessions: list[Session]) -> list[Block]:
    """Return a table of the processes if there are several ranks."""
    if len({session.rank for session in sessions}) < 2:
        return []
    rows = []
    for session in sessions:
        samples = session.system
        if len(samples):
            cpu, memory = samples["process_cpu"], samples["process_memory"]
            numbers = [round(float(cpu.mean()), 1), _number(float(memory.max()) / 2**30)]
            count, missed = len(samples), int(samples["missed"][-1])
            rows.append([session.rank, session.header["host"], count, missed, *numbers])
    columns = ["rank", "machine", "samples", "missed", "mean % of a core", "most memory, GiB"]
    return [table("Processes", columns, rows)]
