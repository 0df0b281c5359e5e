"""Section of the page of a run about a tuning job; ``loopwise.report.sections`` specifies the format."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from loopwise.run import read
from loopwise.sections import Block, choice, left_out, plot, section, table, text
from loopwise.storage.json_lines import count, finite, texts

from .pareto import pareto_front

CURVES = 200
"""Most trials whose curves are drawn: the last ones."""
VALUES = (str, int, float, bool, type(None))
"""Types of a trial's values."""
PAIRS = 6
"""Most pairs of objectives that are drawn."""


def sections(path: str, *others: str) -> list[Block]:
    """Return a section with the history of the objective or the Pareto front, the curves of the trials, and a table.

    Args:
        path: folder or URL of the run.
        others: further runs, which this section does not use.
    """
    records, lost = read(path, "tune", "trials", _trial)
    parents, lost_parents = read(path, "tune", "parents", _trial)
    counts = Counter(tuple(record["goals"].items()) for record in records)
    goals = dict(counts.most_common(1)[0][0]) if counts else {}
    records, other_goals = _of(goals, records)
    parents, other_parents = _of(goals, parents)
    notes = left_out(lost + lost_parents + other_goals + other_parents)
    trials = sorted(records, key=lambda record: int(record["number"]))
    if not trials:
        return section("tune", "Tuning", 70, notes)
    front = _front([*trials, *(parent for parent in parents if parent.get("compared"))])
    overview = _history(records) if len(_goals(trials)) == 1 else _fronts(trials, front)
    slices, rows = _slices(trials), _table([*(t for t in front if t["job"]), *trials], front)
    blocks = [_summary(records, front), overview, _curves(trials), slices, rows, *notes]
    return section("tune", "Tuning", 70, [block for block in blocks if block is not None])


def _trial(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record of a trial; an error if it is of another form."""
    record = {"job": ""} | record
    count(record["number"], below=2**53)
    texts([record["state"], record["reason"], record["job"], *record["goals"].values()])
    finite(record["seconds"])
    for number in (*record["reports"], *record["metrics"].values()):
        float(number)
    if _value(record) is not None:
        _objectives(record)
    if not record["goals"] or not all([type(v) in VALUES for v in record["values"].values()]):
        raise ValueError
    return record


def _of(goals: dict[str, str], records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Return the records of trials with the goals, and the number of others."""
    same = [record for record in records if record["goals"] == goals]
    return same, len(records) - len(same)


def _value(record: dict[str, Any]) -> float | None:
    objective = record["objective"]
    return float(objective) if objective is not None and math.isfinite(float(objective)) else None


def _goals(trials: list[dict[str, Any]]) -> dict[str, str]:
    """Return the objectives and their goals."""
    goals: dict[str, str] = trials[0]["goals"]
    return goals


def _name(trial: dict[str, Any]) -> str:
    return f"{trial['job']}:{trial['number']}" if trial["job"] else str(trial["number"])


def _objectives(trial: dict[str, Any]) -> list[float]:
    return [float(trial["metrics"][goal]) for goal in trial["goals"]]


def _front(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the finished trials of which no other one is better."""
    done = [t for t in trials if t["state"] == "finished" and _value(t) is not None]
    done.sort(key=lambda trial: (bool(trial["job"]), trial["number"]))
    signs = [1 if goal == "minimize" else -1 for goal in (_goals(done).values() if done else ())]
    scores = [[s * v for s, v in zip(signs, _objectives(trial), strict=True)] for trial in done]
    return [done[place] for place in pareto_front(scores)]


def _summary(trials: list[dict[str, Any]], front: list[dict[str, Any]]) -> Block:
    counts = {state: sum(t["state"] == state for t in trials) for state in ("finished", "stopped", "failed")}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    end = f" The best is trial {_name(front[0])} with {_value(front[0]):.5g}." if front else ""
    if len(_goals(trials)) > 1:
        names = ", ".join(_name(trial) for trial in front)
        end = f" No other trial is better than {len(front)} of them: {names}." if front else ""
    return text(f"{len(trials)} trials: {told}.{end}")


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


def _fronts(trials: list[dict[str, Any]], front: list[dict[str, Any]]) -> Block:
    """Return the finished trials by two objectives, and the Pareto front; a menu of pairs if there are more than two."""
    names = list(_goals(trials))
    done = [t for t in trials if t["state"] == "finished" and _value(t) is not None]
    pairs = list(itertools.combinations(range(len(names)), 2))[:PAIRS]
    plots = [_pair(done, front, names, first, second) for first, second in pairs]
    return plots[0] if len(plots) == 1 else choice("Pareto front", "objectives", plots)


def _pair(
    done: list[dict[str, Any]], front: list[dict[str, Any]], names: list[str], first: int, second: int
) -> Block:
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": label,
            "marker": {"size": size},
            "x": [_objectives(trial)[first] for trial in shown],
            "y": [_objectives(trial)[second] for trial in shown],
            "text": [f"trial {_name(trial)}" for trial in shown],
        }
        for label, shown, size in (("trial", done, 6), ("Pareto front", front, 10))
    ]
    layout = {
        "height": 320,
        "xaxis": {"title": {"text": names[first]}},
        "yaxis": {"title": {"text": names[second]}},
        "showlegend": True,
    }
    described = f"{names[first]} and {names[second]} of {len(done)} finished trials, {len(front)} of them in the Pareto front"
    title = "Pareto front" if len(names) == 2 else f"{names[first]} and {names[second]}"
    return plot(title, described, traces, layout)


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
        if len({str(t["values"].get(name)) for t in done}) > 1
    ]
    if not names:
        return None
    dimensions = [_dimension(name, [trial["values"].get(name, "") for trial in done]) for name in names]
    goals = list(_goals(done))
    objective = [_value(trial) for trial in done]
    for place, name in enumerate(goals):
        label = name if len(goals) > 1 else "objective"
        dimensions.append({"label": label, "values": [_objectives(trial)[place] for trial in done]})
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


def _table(trials: list[dict[str, Any]], front: list[dict[str, Any]]) -> Block:
    goals, marked = list(_goals(trials)), {_name(trial) for trial in front}
    names = list(dict.fromkeys(name for trial in trials for name in trial["values"]))
    objectives = ["objective"] if len(goals) == 1 else goals
    columns = ["trial", "state", *objectives, *names, "seconds", "reason"]
    rows = [
        [
            _name(trial) + (" *" if _name(trial) in marked else ""),
            trial["state"],
            *(f"{float(v):.5g}" if (v := trial["metrics"].get(goal)) is not None else "" for goal in goals),
            *(str(trial["values"].get(name, "")) for name in names),
            f"{float(trial['seconds']):.0f}",
            trial["reason"].partition("\n")[0],
        ]
        for trial in trials
    ]
    return table("Trials", columns, rows)
