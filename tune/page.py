"""Section of the page of a run about a tuning job; ``loopwise.report.sections`` specifies the format."""

from __future__ import annotations

import math
from typing import Any

from loopwise.run import read
from loopwise.sections import Block, plot, section, table, text

CURVES = 200
"""Most trials whose curves are drawn: the last ones."""


def sections(path: str, other: str | None = None) -> list[Block]:
    """Return a section with the history of the objective, the curves of the trials, and a table.

    Args:
        path: folder or URL of the run.
        other: another run, which this section does not use.
    """
    records, torn = read(path, "tune", "trials")
    trials = sorted(records, key=lambda record: int(record["number"]))
    if not trials:
        return []
    blocks = [_summary(records, torn), _history(records), _curves(trials), _slices(trials), _table(trials)]
    return section("tune", "Tuning", 70, [block for block in blocks if block is not None])


def _value(record: dict[str, Any]) -> float | None:
    objective = record["objective"]
    return float(objective) if objective is not None and math.isfinite(float(objective)) else None


def _best(trials: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the best trial of those in the order in which they ended."""
    return next((trial for trial in reversed(trials) if trial.get("best")), None)


def _summary(trials: list[dict[str, Any]], torn: int) -> Block:
    counts = {state: sum(t["state"] == state for t in trials) for state in ("finished", "stopped", "failed")}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    best = _best(trials)
    end = f" The best is trial {best['number']} with {_value(best):.5g}." if best is not None else ""
    return text(
        f"{len(trials)} trials: {told}.{end}" + (f" {torn} torn records are left out." if torn else "")
    )


def _history(trials: list[dict[str, Any]]) -> Block:
    ended = list(enumerate(trials, 1))
    done = [
        (n, _value(t), f"trial {t['number']}")
        for n, t in ended
        if t["state"] == "finished" and _value(t) is not None
    ]
    best = [(n, _value(t)) for n, t in ended if t.get("best")]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "trial",
            "x": [n for n, _, _ in done],
            "y": [v for _, v, _ in done],
            "text": [told for _, _, told in done],
        },
        {
            "type": "scatter",
            "mode": "lines",
            "line": {"shape": "hv"},
            "name": "best so far",
            "x": [n for n, _ in best],
            "y": [v for _, v in best],
        },
    ]
    layout = {"height": 280, "xaxis": {"title": {"text": "ended trials"}}, "showlegend": True}
    return plot("Objective", f"Objective of {len(done)} finished trials, and the best so far", traces, layout)


def _curves(trials: list[dict[str, Any]]) -> Block | None:
    shown = [trial for trial in trials if len(trial["reports"]) > 1][-CURVES:]
    if not shown:
        return None
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"trial {trial['number']}" + (", stopped" if trial["state"] == "stopped" else ""),
            "line": {"dash": "dot" if trial["state"] == "stopped" else "solid"},
            "x": list(range(1, len(trial["reports"]) + 1)),
            "y": [float(v) if math.isfinite(float(v)) else None for v in trial["reports"]],
        }
        for trial in shown
    ]
    layout = {"height": 320, "xaxis": {"title": {"text": "report"}}, "showlegend": len(shown) <= 20}
    stopped = sum(trial["state"] == "stopped" for trial in shown)
    return plot(
        "Curves",
        f"Objective by report of {len(shown)} trials, {stopped} of them stopped (dotted)",
        traces,
        layout,
    )


def _slices(trials: list[dict[str, Any]]) -> Block | None:
    done = [trial for trial in trials if trial["state"] == "finished" and _value(trial) is not None]
    names = [
        name
        for name in (done[0]["values"] if done else {})
        if len({str(t["values"][name]) for t in done}) > 1
    ]
    if not names:
        return None
    dimensions = [_dimension(name, [trial["values"][name] for trial in done]) for name in names]
    objective = [_value(trial) for trial in done]
    dimensions.append({"label": "objective", "values": objective})
    trace = {"type": "parcoords", "dimensions": dimensions, "line": {"color": objective, "showscale": True}}
    return plot("Values", f"Values and objective of {len(done)} finished trials", [trace], {"height": 340})


def _dimension(name: str, values: list[Any]) -> dict[str, Any]:
    """Return an axis of parallel coordinates: numbers, or the places of texts in their order."""
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if numbers:
        return {"label": name, "values": values}
    texts = sorted({str(value) for value in values})
    places = [texts.index(str(value)) for value in values]
    return {"label": name, "values": places, "tickvals": list(range(len(texts))), "ticktext": texts}


def _table(trials: list[dict[str, Any]]) -> Block:
    names = list(dict.fromkeys(name for trial in trials for name in trial["values"]))
    columns = ["trial", "state", "objective", *names, "seconds", "reason"]
    rows = [
        [
            trial["number"],
            trial["state"],
            "" if trial["objective"] is None else f"{float(trial['objective']):.5g}",
            *(str(trial["values"].get(name, "")) for name in names),
            f"{float(trial['seconds']):.0f}",
            trial["reason"].partition("\n")[0],
        ]
        for trial in trials
    ]
    return table("Trials", columns, rows)
