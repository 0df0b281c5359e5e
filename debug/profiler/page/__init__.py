"""What the page of a run shows of its profile; ``loopwise.report.sections`` says of what form."""

from __future__ import annotations

import time
from typing import Any

from .. import summary
from ..reading import Session, sessions
from . import phases as page_phases
from . import system as page_system

Block = dict[str, Any]
OPERATORS = 20
"""Of a window."""


def sections(path: str, other: str | None = None) -> list[dict[str, Any]]:
    """The times of the run, phases of its steps, the machine, and operators of chosen steps.

    Args:
        path: of a run.
        other: of a run to compare it with.
    """
    found = sessions(path)
    if not found:
        return []
    beside = [] if other is None else sessions(other)
    shown = [
        ("job", "Job", 10, _job(path, found, other, beside)),
        ("phases", "Step phases", 50, page_phases.blocks(found, beside)),
        ("system", "System", 60, page_system.blocks(found)),
        ("operators", "Operators", 70, _operators(found)),
    ]
    return [
        {"id": key, "title": title, "order": order, "blocks": blocks}
        for key, title, order, blocks in shown
        if blocks
    ]


def table(title: str, columns: list[str], rows: list[list[Any]]) -> Block:
    return {"kind": "table", "title": title, "columns": columns, "rows": rows}


def _job(path: str, found: list[Session], other: str | None, beside: list[Session]) -> list[Block]:
    runs = [summary.job(path, found)] + ([summary.job(other, beside)] if other and beside else [])
    rows: list[list[Any]] = [
        [name, *(_when(job[name]) for job in runs)] for name in ("start", "end") if runs[0][name] is not None
    ]
    names = {
        "initialization": "until the end of the first step, s",
        "loop": "steps after the first, s",
        "finalization": "after the last step, s",
    }
    for name, label in names.items():
        if any(job[name] is not None for job in runs):
            rows.append([label, *(_short(job[name]) for job in runs)])
    rows.append(
        ["ranks that were profiled", *(len({s.rank for s in each}) for each in (found, beside) if each)]
    )
    return [
        table("Times", ["", "this run", "the other"][: 1 + len(runs)], [row[: 1 + len(runs)] for row in rows])
    ]


def _when(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + " UTC"


def _short(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _operators(found: list[Session]) -> list[Block]:
    blocks = []
    for session in found:
        for window in session.operators:
            last = window["step"] + window["steps"] - 1
            title = f"Steps {window['step']} to {last}, rank {session.rank}, {window['seconds']:.3g} s"
            rows = [
                [
                    name,
                    round(1e3 * cpu, 3),
                    round(1e3 * cuda, 3),
                    calls,
                    round(memory / 2**20, 3),
                    round(held / 2**20, 3),
                ]
                for name, cpu, cuda, calls, memory, held in window["rows"][:OPERATORS]
            ]
            columns = ["operator", "CPU, ms", "device, ms", "calls", "memory, MiB", "device memory, MiB"]
            blocks.append(table(title, columns, rows))
            text = f"The trace debug/{window['trace']} opens in ui.perfetto.dev or chrome://tracing."
            blocks.append({"kind": "text", "text": text})
    return blocks
