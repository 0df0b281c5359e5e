"""Render ``docs/benchmarks.md`` from the newest records in ``benchmarks/results``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from .docstrings import docstring, sentence
from .rooms import ROOT

HEAD = """# Benchmarks

<!-- This page is generated from benchmarks/results by python -m docs.generators. -->

Each claim has a benchmark that measures our side and the peer's side in the same run and compares the result with a
bar that was set beforehand. This page shows the newest record for each claim, device and kind of processor. A number is
the median over the runs, with the lowest and highest in parentheses; a ratio is ours over the peer's. Rows that miss
their bar say **missed**. [Decisions](decisions.md) explains what was tried and why.
"""
RESULTS = ROOT / "benchmarks" / "results"
TABLE = "| quantity | unit | ours | peer | ratio | bar | result |\n|---|---|---|---|---|---|---|"


def newest() -> dict[tuple[str, str, str], tuple[Path, dict[str, Any]]]:
    """Return the newest full record by claim, device and instruction set of the processor."""
    records: dict[tuple[str, str, str], tuple[Path, dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("*.json"), key=lambda path: (path.stem.rsplit("_", 1)[-1], path.stem)):
        record = json.loads(path.read_text())
        if not record.get("quick"):
            machine = record["machine"]
            records[record["claim"], machine["device"], machine["capability"]] = path, record
    return dict(sorted(records.items()))


def benchmark(claim: str) -> Path | None:
    """Return the file of the benchmark that measures a claim."""
    pattern = re.compile(rf'^CLAIM = "{re.escape(claim)}"', re.MULTILINE)
    files = sorted((ROOT / "benchmarks").rglob("*.py"))
    return next((path for path in files if pattern.search(path.read_text())), None)


def number(value: float | str | None) -> str:
    """Return a number with three digits, or the text that stands for it."""
    if isinstance(value, str):
        return value
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def spread(values: list[float | str] | None) -> str:
    """Return a median with its range; one number where all are equal."""
    if values is None:
        return ""
    texts = [number(value) for value in values]
    return texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]} to {texts[2]})"


def line(row: dict[str, Any]) -> str:
    """Return the table row of one quantity."""
    peer = f"{spread(row['peer'])}, {row['peer_name']}" if row["peer"] else ""
    result = {True: "met", False: "**missed**", None: ""}[row["met"]]
    cells = [
        row["quantity"],
        row["unit"],
        spread(row["ours"]),
        peer,
        number(row["ratio"]),
        row["bar"] or "",
        result,
    ]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def section(path: Path, record: dict[str, Any]) -> str:
    """Return the section of one record."""
    machine, versions = record["machine"], record["versions"]
    day = path.stem.rsplit("_", 1)[-1]
    source = benchmark(record["claim"])
    title = f"## {record['claim']}, {machine['device']}, {machine['capability']}"
    lines = [title, ""]
    if source is not None:
        name = source.relative_to(ROOT)
        command = record.get("command", f"python -m {'.'.join(name.with_suffix('').parts)}")
        lines += [f"{sentence(docstring(source))}. Command: `{command}` ([source](../{name})).", ""]
    lines += [
        f"Measured {day[:4]}-{day[4:6]}-{day[6:]} on {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, device {machine['device']}, Python {versions['python']}, torch "
        f"{versions['torch']} ([record](../benchmarks/results/{path.name})).",
        "",
        TABLE,
        *(line(row) for row in record["rows"]),
        "",
    ]
    return "\n".join(lines)


def summary(records: dict[tuple[str, str, str], tuple[Path, dict[str, Any]]]) -> str:
    """Return a table that counts the bars met and missed by each record."""
    lines = ["| claim | device | bars met | missed |", "|---|---|---|---|"]
    for (claim, device, capability), (_, record) in records.items():
        bars = [row["met"] for row in record["rows"] if row["met"] is not None]
        anchor = re.sub(r"[^\w -]", "", f"{claim}, {device}, {capability}".lower()).replace(" ", "-")
        lines.append(
            f"| [{claim}](#{anchor}) | {device}, {capability} | {sum(bars)} | {len(bars) - sum(bars)} |"
        )
    return "\n".join(lines) + "\n"


def render() -> str:
    """Return the page."""
    records = newest()
    return "\n".join([HEAD, summary(records), *(section(*item) for item in records.values())]).rstrip() + "\n"
