"""Section of a run's page about compiled steps; ``loopwise.report.sections`` specifies the format."""

from __future__ import annotations

from typing import Any

from loopwise.run import read
from loopwise.sections import Block, left_out, plot, section, summary, table, text
from loopwise.storage.json_lines import count, finite, texts

COLUMNS = {"ms": "ms", "least": "least ms", "most": "most ms", "MiB": "peak MiB", "compile s": "compile s"}
"""Key of a number in the record -> heading of its column."""


def sections(path: str, *others: str) -> list[Block]:
    """Return the plan in use, the variants that it was chosen from, and later events.

    Args:
        path: the run.
        others: further runs; they are ignored, because plans of several runs are not compared.
    """
    plans, lost_plans = read(path, "compile", "plans", _plan)
    events, lost_events = read(path, "compile", "events", _event)
    blocks = plans[-1] if plans else []
    if events:
        blocks.append(table("Events", ["batch", "event"], events))
    return section("compile", "Compiled step", 85, [*blocks, *left_out(lost_plans + lost_events)])


def _plan(record: dict[str, Any]) -> list[Block]:
    """Return the blocks of a record in ``plans``; an error if the record is of another form."""
    source = f" ({record['source']})" if record.get("source") else ""
    blocks = [text(f"Since batch {count(record['batch']):,}: {_in_words(record['plan'])}{source}.")]
    blocks += [*_variants(record["forms"]), *_in_short(record["forms"])]
    if remarks := texts(record["remarks"]):
        blocks.append(table("Remarks", ["remark"], [[remark] for remark in remarks]))
    return blocks


def _in_short(variants: list[dict[str, Any]]) -> list[Block]:
    """Return a sentence about what the choice of the step saves; none if no variant was timed beside the eager step."""
    timed = [row for row in variants if row["ms"] is not None]
    used = [row for row in timed if row["verdict"] in ("chosen", "in use")]
    if len(timed) < 2 or not used:
        return []
    now, eager = finite(used[0]["ms"]), finite(timed[0]["ms"])
    if used[0] is timed[0] or not now < eager:
        return [summary("No compiled variant of the step was faster than the eager one.", 65)]
    took = f"{now:.1f} ms for forward and backward instead of {eager:.1f} ms ({now / eager:.2f})"
    return [summary(f"The compiled step takes {took}.", 65)]


def _event(record: dict[str, Any]) -> list[Any]:
    """Return the row of a record in ``events``; an error if the record is of another form."""
    return [count(record["batch"]), *texts([record["text"]])]


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
    for row in variants:
        texts([row["form"], row["verdict"]])
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
    return None if value is None else round(finite(value), 3) if isinstance(value, float) else count(value)
