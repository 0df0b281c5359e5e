"""What the page of a run shows of compiled steps; ``loopwise.report.sections`` says of what form."""

from __future__ import annotations

from typing import Any

from loopwise.run import read

NUMBERS = ("ms", "least", "most", "MiB", "compile s")


def sections(path: str, other: str | None = None) -> list[dict[str, Any]]:
    """The plan in use, the forms it was chosen among, and what happened to it.

    Args:
        path: of a run.
        other: not looked at: plans of two runs are not set side by side.
    """
    plans, _ = read(path, "compile", "plans")
    events, _ = read(path, "compile", "events")
    blocks: list[dict[str, Any]] = []
    if plans:
        latest = plans[-1]
        blocks.append({"kind": "text", "text": f"Since batch {latest['batch']:,}: {_words(latest['plan'])}."})
        blocks += _forms(latest["forms"])
        if latest["remarks"]:
            rows = [[remark] for remark in latest["remarks"]]
            blocks.append({"kind": "table", "title": "Remarks", "columns": ["what"], "rows": rows})
    if events:
        rows = [[event["batch"], event["text"]] for event in events]
        blocks.append({"kind": "table", "title": "Events", "columns": ["batch", "what"], "rows": rows})
    return [{"id": "compile", "title": "Compiled step", "order": 85, "blocks": blocks}] if blocks else []


def _words(plan: dict[str, Any] | None) -> str:
    """What is on in a plan."""
    if plan is None:
        return "no plan"
    parts = [
        f"{name.replace('_', ' ')} {_word(value)}" for name, value in plan.items() if value not in (False, [])
    ]
    return ", ".join(parts)


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(value)
    return "on" if value is True else str(value).replace("_", " ")


def _forms(forms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds and memory of the forms that were tried."""
    if not forms:
        return []
    rows = [[form["form"], *(_number(form[name]) for name in NUMBERS), form["verdict"]] for form in forms]
    columns = ["form", "ms", "least ms", "most ms", "MiB", "compile s", "verdict"]
    table = {"kind": "table", "title": "Forms of the step", "columns": columns, "rows": rows}
    timed = [form for form in forms if form["ms"] is not None]
    if len(timed) < 2:
        return [table]
    error = {
        "type": "data",
        "symmetric": False,
        "array": [form["most"] - form["ms"] for form in timed],
        "arrayminus": [form["ms"] - form["least"] for form in timed],
    }
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [form["form"] for form in timed],
        "x": [form["ms"] for form in timed],
        "error_x": error,
    }
    best = min(timed, key=lambda form: form["ms"])
    layout = {
        "height": 110 + 34 * len(timed),
        "xaxis": {"title": {"text": "milliseconds, forward and backward"}},
        "yaxis": {"autorange": "reversed"},
    }
    describe = f"Median, least and most milliseconds of each form; the fastest is {best['form']} with {best['ms']:.1f} ms"
    return [
        {"kind": "plot", "title": "Time of a step", "describe": describe, "data": [bars], "layout": layout},
        table,
    ]


def _number(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
