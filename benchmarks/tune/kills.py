"""Kills of tuner, supervisor or program at random moments: what is recorded afterwards, and what still runs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loopwise.programs.processes import identity

from .. import harness
from ..record import Row
from .running import described

CLAIM = "tune_kills"
QUICK = False
KILLS = 40
"""Kills of one run; the record has five runs."""
KINDS = ("tuner", "supervisor", "program")
PROGRAM = """
for step in 1 2 3 4; do
    sleep 0.2
    echo "loss=$1"
done
"""


def kills(seed: int) -> dict[str, float]:
    """Kill one process after the other, resume each time, and compare what is recorded with what was recorded before."""
    draws, count = random.Random(seed), KILLS // 10 if QUICK else KILLS
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train").write_text(PROGRAM)
        command = f"sh {folder}/train {{x}}"
        before: dict[int, Any] = {}
        found: Counter[str] = Counter()
        last = False
        while not last:
            last = sum(found[kind] for kind in KINDS) >= count
            trials = len(before) + 6
            pid = _forked(described(command, trials=trials, parallel=3, retries=30), folder)
            if not last:
                found[_kill(Path(folder), pid, draws)] += 1
            _, status = os.waitpid(pid, 0)
            if status and not os.WIFSIGNALED(status):
                raise RuntimeError(f"a tuner failed:\n{Path(folder, 'errors').read_text()}")
            before = _compared(before, folder, found)
        found["lost"] += trials - len(before)
        time.sleep(1)
        pids = [json.loads(path.read_text()) for path in Path(folder).glob("run/tune/trials/*/*/pid")]
        orphans = sum(identity(known["pid"]) == known for known in pids)
        found["failed"] = sum(state == "failed" for state, _ in before.values())
    names = (*KINDS, "lost", "twice", "failed")
    return {name: found[name] for name in names} | {"orphans": orphans, "trials": len(before)}


def _forked(content: dict[str, Any], folder: str) -> int:
    """Start a tuner in a process of its own, without the seconds that its imports would take each time."""
    from loopwise.tune import job_of, run

    pid = os.fork()
    if pid:
        return pid
    try:
        run(job_of(content, "job"), f"{folder}/run", resume=True)
        os._exit(0)
    except BaseException:
        Path(folder, "errors").write_text(traceback.format_exc())
        os._exit(1)


def _compared(before: dict[int, Any], folder: str, found: Counter[str]) -> dict[int, Any]:
    """Return what is recorded now, and count what was lost, changed or recorded twice."""
    from loopwise.tune.trials import recorded

    records = recorded(f"{folder}/run") if Path(folder, "run/run.json").exists() else []
    after = {trial.number: (trial.state, trial.objective) for trial in records}
    found["lost"] += len(before.keys() - after.keys())
    found["twice"] += sum(after[key] != value for key, value in before.items() if key in after)
    found["twice"] += len(records) - len(after)
    return after


def _kill(folder: Path, tuner: int, draws: random.Random) -> str:
    """Kill one of the three kinds of processes at a random moment after trials run; return which."""
    kind, after = draws.choice(KINDS), draws.random() * 0.6
    while not _running(folder) and not _has_ended(tuner):
        time.sleep(0.02)
    time.sleep(after)
    while not _has_ended(tuner):
        supervisors = _running(folder)
        if kind == "tuner":
            targets = [tuner]
        else:
            targets = [draws.choice(supervisors)] if supervisors else []
        if kind == "program" and targets:
            targets = _children(targets[0])
        if targets and all([_has_been_killed(pid) for pid in targets]):
            return kind
        time.sleep(0.01)
    return "none"


def _running(folder: Path) -> list[int]:
    """Return the supervisors of the trials that run."""
    paths = [path for path in folder.glob("run/tune/trials/*/*/pid") if not (path.parent / "exit").exists()]
    known = [json.loads(path.read_text()) for path in paths]
    return [process["pid"] for process in known if identity(process["pid"]) == process]


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _has_been_killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {"kills": kills}


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    found = {quantity: [sum(values)] for quantity, values in runs["kills"].items()}
    done = [sum(found[kind][0] for kind in KINDS)]
    table = [Row("kills of tuner, supervisor or program", done, None, "", "", "ours >= 200")]
    table += [Row(f"kills of a {kind}", found[kind], None, "", "", None) for kind in KINDS]
    for quantity, name in (
        ("lost", "finished trials lost"),
        ("twice", "counted twice or changed"),
        ("orphans", "orphans"),
    ):
        table.append(Row(f"kills: {name}", found[quantity], None, "", "", "ours <= 0"))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
