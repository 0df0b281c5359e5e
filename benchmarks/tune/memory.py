"""Memory of a tuner over many finished trials."""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import psutil

from .. import harness
from ..record import Row
from .running import described

CLAIM = "tune_memory"
QUICK = False
FIRST, LAST, REPORTS = 1_000, 10_000, 20
"""Trials after which the memory is measured, and reports of each."""


def ended_at_once(attempt: Any, *arguments: Any) -> None:
    """Write what a trial leaves behind, in place of starting it: 10,000 processes would take an hour."""
    from loopwise.programs.processes import write_json

    attempt.folder.mkdir(parents=True, exist_ok=True)
    lines = [f"epoch={epoch} loss={random.random()}\n" for epoch in range(REPORTS)]
    (attempt.folder / "stdout").write_text("".join(lines))
    write_json(f"{attempt.folder}/exit", {"code": 0, "reason": "ended", "seconds": 0.1})


def grow(seed: int) -> dict[str, float]:
    """Run a tuner whose trials end at once; its resident memory after the first thousand trials and after all."""
    from loopwise.tune import Tuner, job_of, tuner
    from loopwise.tune.process.attempt import Attempt

    first, last = (FIRST // 10, LAST // 10) if QUICK else (FIRST, LAST)
    process, resident = psutil.Process(), {}

    def look(tuner: Tuner) -> None:
        ended = len(tuner.trials)
        if ended >= first:
            resident.setdefault("first", process.memory_info().rss)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Attempt, "start", ended_at_once):
        content = described("true", trials=last, parallel=10) | {"early_stopping": "auto", "seed": seed}
        with mock.patch.object(tuner, "POLL", 0.0):
            Tuner(job_of(content, "job"), f"{folder}/run", show=look).run()
        resident["last"] = process.memory_info().rss
    return {"MB first": resident["first"] / 1e6, "MB last": resident["last"] / 1e6}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {"memory": grow}


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    found = runs["memory"]
    name = f"resident memory after {LAST:,} trials of {REPORTS} reports"
    return [Row(name, found["MB last"], found["MB first"], f"after {FIRST:,}", "MB", "ratio <= 1.1")]


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
