"""Sections of the page of a run about its profile; ``loopwise.report.sections`` specifies their form."""

from __future__ import annotations

import time
from typing import Any

from loopwise.sections import Block, left_out, section, table, text

from .. import summary
from ..reading import Session, read_sessions, sessions
from . import phases as page_phases
from . import system as page_system

OPERATORS = 20
"""Number of operators of a window on the page."""
SCALES = (1e3, 1e3, 1, 2**-20, 2**-20)
"""Factors of the numbers of an operator: of ``windows.COLUMNS`` to milliseconds, calls and MiB."""
DURATIONS = {
    "initialization": "until the end of the first step, s",
    "loop": "steps after the first, s",
    "finalization": "after the last step, s",
}
"""Key of ``summary.job`` -> label."""


def sections(path: str, *others: str) -> list[dict[str, Any]]:
    """Return the times of the run, phases of its steps, the use of the machine, and operators of chosen steps.

    Args:
        path: folder or fsspec URL of a run.
        others: folders or URLs of runs to compare it with.
    """
    own, lost = read_sessions(path)
    if not own:
        return section("job", "Job", 10, left_out(lost))
    beside = {other: sessions(other) for other in others}
    return [
        *section("job", "Job", 10, [*_job({path: own, **beside}), *left_out(lost)]),
        *section(
            "phases",
            "Step phases",
            50,
            page_phases.blocks(own, {_name(other): read for other, read in beside.items()}),
        ),
        *section("system", "System", 60, page_system.blocks(own)),
        *section("operators", "Operators", 70, _operators(own)),
    ]


def _job(runs: dict[str, list[Session]]) -> list[Block]:
    runs = {path: read for path, read in runs.items() if read}
    jobs = [summary.job(path, read) for path, read in runs.items()]
    rows: list[list[Any]] = [
        [name, *(_date(job[name]) for job in jobs)] for name in ("start", "end") if jobs[0][name] is not None
    ]
    for name, label in DURATIONS.items():
        if any(job[name] is not None for job in jobs):
            seconds = [job[name] for job in jobs]
            rows.append([label, *(None if value is None else round(value, 3) for value in seconds)])
    ranks = [len({session.rank for session in sessions}) for sessions in runs.values()]
    rows.append(["ranks that were profiled", *ranks])
    return [table("Times", ["", *map(_name, runs)], rows)]


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _date(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + " UTC"


def _operators(own: list[Session]) -> list[Block]:
    blocks = []
    for session in own:
        for window in session.operators:
            last = window["step"] + window["steps"] - 1
            title = f"Steps {window['step']} to {last}, rank {session.rank}, {window['seconds']:.3g} s"
            rows = [
                [name, *(round(scale * number, 3) for scale, number in zip(SCALES, numbers, strict=True))]
                for name, *numbers in window["rows"][:OPERATORS]
            ]
            columns = ["operator", "CPU, ms", "device, ms", "calls", "memory, MiB", "device memory, MiB"]
            opens = f"The trace debug/{window['trace']} opens in ui.perfetto.dev or chrome://tracing."
            blocks += [table(title, columns, rows), text(opens)]
    return blocks
