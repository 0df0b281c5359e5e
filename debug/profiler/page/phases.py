"""Phases of steps, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loopwise.sections import Block, plot, table, text

from ...rules.profile import load_balancing
from ...rules.profile.series import Floats, Table, joined
from ...statistics.thin import thinned
from .. import summary
from ..cuda_events import GPU
from ..reading import Session

PIECES = 400
"""Largest number of points of a plot over steps; each point is the mean over some steps."""
BINS = 60
"""Bars of the histogram of durations."""


def blocks(sessions: list[Session], others: Mapping[str, list[Session]]) -> list[Block]:
    """Return tables and plots; none if no step has ended.

    Args:
        sessions: sessions of the run.
        others: sessions of runs to compare it with, by the name of the run.
    """
    ranks = _by_rank(sessions)
    if not ranks:
        return []
    rank, shown = min(ranks.items())
    beside = {name: min(of.items())[1] for name, read in others.items() if (of := _by_rank(read))}
    title = "" if len(ranks) == 1 else f", rank {rank}"
    shown_blocks = [_phases(shown, beside, title), _steps(shown, beside, title)]
    train = shown.of("train")
    if len(train) > 1:
        shown_blocks += [_over_steps(train, title), _durations(train, title), _histogram(train, title)]
    if rows := summary.outliers(shown):
        columns = ["step", "seconds", "times the median", "most in the phase"]
        cells = [[r["step"], round(r["seconds"], 4), round(r["times"], 1), r["phase"]] for r in rows]
        shown_blocks.append(table(f"Longest steps of training{title}", columns, cells))
    return shown_blocks + _ranks(ranks)


def _by_rank(sessions: list[Session]) -> dict[int, Table]:
    """Return the phases of each rank that ended a step, joined over its sessions."""
    ranks: dict[int, list[Table]] = {}
    for session in sessions:
        if len(phases := session.phases):
            ranks.setdefault(session.rank, []).append(phases)
    return {rank: joined(tables) for rank, tables in ranks.items()}


def _phases(shown: Table, beside: Mapping[str, Table], title: str) -> Block:
    means, others = _means(shown), [_means(other) for other in beside.values()]
    rows = []
    for mode, kinds in summary.phases(shown).items():
        for kind, (seconds, share) in kinds.items():
            if seconds:
                row = [mode, kind, round(seconds, 3), round(100 * share, 1), means[mode, kind]]
                rows.append(row + [of.get((mode, kind)) for of in others])
    columns = ["mode", "phase", "seconds", "%", "ms a step", *(f"ms a step, {name}" for name in beside)]
    return table(f"Time by phase{title}", columns, rows)


def _means(shown: Table) -> dict[tuple[str, str], float]:
    """Return milliseconds a step by mode and phase."""
    return {
        (mode, kind): round(1e3 * seconds / float(shown.of(mode)["count"].sum()), 3)
        for mode, kinds in summary.phases(shown).items()
        for kind, (seconds, _) in kinds.items()
    }


def _steps(shown: Table, beside: Mapping[str, Table], title: str) -> Block:
    rows = []
    for name, run in {"this run": shown, **beside}.items():
        for mode, values in summary.steps(run).items():
            numbers = [round(1e3 * values[key], 3) for key in ("mean", "p50", "p95", "p99", "max")]
            rows.append([name, mode, int(values["steps"]), *numbers])
    columns = ["run", "mode", "steps", "mean, ms", "p50, ms", "p95, ms", "p99, ms", "max, ms"]
    cut = 0 if beside else 1
    return table(f"Step durations{title}", columns[cut:], [row[cut:] for row in rows])


def _over_steps(train: Table, title: str) -> Block:
    """Return a plot of the phases, stacked."""
    edges = np.unique(np.linspace(0, len(train), PIECES + 1).astype(int))
    counts = np.add.reduceat(train["count"], edges[:-1])
    steps = train["step"][edges[1:] - 1]
    data = []
    for number, kind in enumerate(kind for kind in summary.kinds(train) if kind not in GPU):
        if train[kind].any():
            mean = 1e3 * np.add.reduceat(train[kind], edges[:-1]) / counts
            style = {"stackgroup": "phases", "line": {"width": 0.5}, "meta": {"color": number}}
            data.append({"type": "scatter", "mode": "lines", "name": kind, "x": steps, "y": mean, **style})
    shares = summary.phases(train)["train"]
    most = sorted((k for k in shares if k not in GPU), key=lambda kind: -shares[kind][1])[:3]
    describe = "Of training steps: " + ", ".join(f"{kind} {shares[kind][1]:.0%}" for kind in most)
    return _plot(f"Phases of training steps{title}", describe, data, "step", "ms a step")


def _durations(train: Table, title: str) -> Block:
    longest: Floats = 1e3 * train["longest"]
    index, values = thinned(np.arange(len(train)), longest)
    trace = {"type": "scatter", "mode": "lines", "name": "step", "x": train["step"][index], "y": values}
    median, most = np.median(longest) / 1e3, longest.max() / 1e3
    describe = f"Seconds of training steps: median {median:.4g}, longest {most:.4g}"
    return _plot(f"Training steps{title}", describe, [trace], "step", "ms")


def _histogram(train: Table, title: str) -> Block:
    means = 1e3 * train["seconds"] / train["count"]
    counts, edges = np.histogram(means, BINS, weights=train["count"])
    middles = (edges[1:] + edges[:-1]) / 2
    trace = {"type": "bar", "name": "steps", "x": middles, "y": counts, "width": np.diff(edges)}
    describe = f"Training steps by their duration, from {means.min():.3g} to {means.max():.3g} ms"
    return _plot(f"Durations of training steps{title}", describe, [trace], "ms", "steps")


def _plot(title: str, describe: str, data: list[dict[str, Any]], x: str, y: str) -> Block:
    layout = {
        "showlegend": len(data) > 1,
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
    }
    return plot(title, describe, data, layout)


def _ranks(ranks: dict[int, Table]) -> list[Block]:
    """Return the mean of a training step by rank, and ranks that are late, if there are several ranks."""
    if len(ranks) < 2:
        return []
    kinds = summary.SECONDS
    rows = []
    for rank, phases in ranks.items():
        train = phases.of("train")
        steps = float(train["count"].sum())
        if steps:
            means = [round(1e3 * float(train[kind].sum()) / steps, 3) for kind in ("seconds", *kinds)]
            rows.append([rank, int(steps), *means])
    columns = ["rank", "steps", "ms a step", *kinds]
    late = load_balancing.between({rank: phases.of("train") for rank, phases in ranks.items()})
    sentences = [text(f"{observation.what}; {load_balancing.RULE.advice}.") for observation in late]
    return [*sentences, table("Training steps by rank, ms", columns, rows)]
