"""Section of a run's page about compiled steps; ``loopwise.report.sections`` specifies the format."""

from __future__ import annotations

from typing import Any

from loopwise.run import read
from loopwise.sections import Block, plot, section, table, text

COLUMNS = {"ms": "ms", "least": "least ms", "most": "most ms", "MiB": "peak MiB", "compile s": "compile s"}
"""Key of a number in the record -> heading of its column."""


def sections(path: str, other: str | None = None) -> list[Block]:
    """Return the plan in use, the variants that it was chosen from, and later events.

    Args:
        path: the run.
        other: a second run; it is ignored, because plans of two runs are not compared.
    """
    plans, _ = read(path, "compile", "plans")
    events, _ = read(path, "compile", "events")
    blocks: list[Block] = []
    if plans:
        latest = plans[-1]
        source = f" ({latest['source']})" if latest.get("source") else ""
        blocks.append(text(f"Since batch {latest['batch']:,}: {_in_words(latest['plan'])}{source}."))
        blocks += _variants(latest["forms"])
        if latest["remarks"]:
            blocks.append(table("Remarks", ["remark"], [[remark] for remark in latest["remarks"]]))
    if events:
        rows = [[event["batch"], event["text"]] for event in events]
        blocks.append(table("Events", ["batch", "event"], rows))
    return section("compile", "Compiled step", 85, blocks)


def _in_words(plan: dict[str, Any] | None) -> str:
    """Return the choices of a plan that are on."""
    if plan is None:
        return "no plan"
    on = {name.replace("_", " "): value for name, value in plan.items() if value not in (False, [])}
    return ", ".join(f"{name} {_word(value)}" for name, value in on.items())


def _word(value: Any) -> str:
    if isinstance(value, list):
        return " and ".join(value)
    return "on" if value is True else str(value).replace("_", " ")


def _variants(variants: list[dict[str, Any]]) -> list[Block]:
    """Return a plot and a table of the milliseconds and memory of the variants that were tried."""
    if not variants:
        return []
    rows = [[row["form"], *(_number(row[key]) for key in COLUMNS), row["verdict"]] for row in variants]
    columns = ["variant", *COLUMNS.values(), "result"]
    times = table("Variants of the step", columns, rows)
    timed = [row for row in variants if row["ms"] is not None]
    if len(timed) < 2:
        return [times]
    above, below = ([abs(row[end] - row["ms"]) for row in timed] for end in ("most", "least"))
    errors = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    bars = {"type": "bar", "orientation": "h", "error_x": errors}
    bars |= {"y": [row["form"] for row in timed], "x": [row["ms"] for row in timed]}
    best = min(timed, key=lambda row: row["ms"])
    axis = {"title": {"text": "milliseconds, forward and backward"}}
    layout = {"height": 110 + 34 * len(timed), "xaxis": axis, "yaxis": {"autorange": "reversed"}}
    fastest = f"the fastest is {best['form']} with {best['ms']:.1f} ms"
    describe = f"Median, least and most milliseconds of each variant; {fastest}"
    return [plot("Time of a step", describe, [bars], layout), times]


def _number(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
