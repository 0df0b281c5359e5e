"""Tuning of programs: logs per second, the tuner's own time, a trial's time beside it, and 200 kills."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import harness
from ..record import Row

CLAIM = "tune_running"
QUICK = False
MEGABYTES, TRIALS, LINES, KILLS = 100, 1000, 2_000_000, 40
"""Sizes of a run; kills are of one run, which is five times that by default."""
NUMBER = r"([-+]?[\d.]+(?:[eE][-+]?\d+)?)"


def described(command: str, **limits: Any) -> dict[str, Any]:
    """Return the description of a job."""
    return {
        "command": command,
        "parameters": {"x": {"type": "continuous", "low": 0.0, "high": 1.0}},
        "metrics": [{"name": "loss", "regex": rf"loss={NUMBER}"}],
        "objective": {"metric": "loss", "goal": "minimize"},
        "limits": limits,
        "strategy": "random",
    }


def log(before: str, seed: int) -> dict[str, float]:
    """Read a log by 40 expressions; 5 % of its lines have three metrics."""
    from loopwise.tune import Metric
    from loopwise.tune.log.curves import Reader

    draws, lines = random.Random(seed), []
    for number in range(100_000):
        if number % 20:
            lines.append(
                f"{'x' * 20} some ordinary line of a log number {number} with words and more words in it"
            )
        else:
            values = f"loss={draws.random():.5f} acc={draws.random():.4f} lr=1.0e-3"
            lines.append(f"2026-11-29 06:08:52 INFO train: epoch={number} {values} step {number}")
    data = ("\n".join(lines) + "\n").encode()
    words = ["loss", "acc", "lr", *(f"metric{number}" for number in range(37))]
    reader = Reader([Metric(name=word, regex=rf"{before}{word}={NUMBER}") for word in words])
    megabytes = (10 if QUICK else MEGABYTES) * 1_000_000
    read, start = 0, time.process_time()
    while read < megabytes:
        reader.feed(data)
        read += len(data)
    reader.end()
    seconds = time.process_time() - start
    assert reader.curves["loss"].count == 5000 * read // len(data)
    return {"seconds per 100 MB": seconds * 100e6 / read}


def own_time(seed: int) -> dict[str, float]:
    """Run many trials; the processor time of the tuner without the study and the starts of processes."""
    from loopwise.tune import Tuner, job_of
    from loopwise.tune.process.attempt import Attempt
    from loopwise.tune.search.study import Study

    trials, excluded = 100 if QUICK else TRIALS, [0.0]

    def without(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                excluded[0] += time.process_time() - start

        return call

    for owner, name in (
        (Study, "ask"),
        (Study, "tell"),
        (Study, "trials"),
        (Attempt, "start"),
    ):
        setattr(owner, name, without(getattr(owner, name)))
    with tempfile.TemporaryDirectory() as folder:
        content = described("echo loss={x}", trials=trials, parallel=4)
        tuner = Tuner(job_of(content | {"seed": seed}, "job"), f"{folder}/run")
        excluded[0], start = 0.0, time.process_time()
        tuner.run()
        spent = time.process_time() - start
        assert len(tuner.trials) == trials
    return {"ms per trial": 1e3 * (spent - excluded[0]) / trials, "ms with the study": 1e3 * spent / trials}


WRITER = """
import sys, time
start = time.perf_counter()
line = "epoch 3 some words of a log that is written as fast as it can be, loss=0.5\\n" * 20
for _ in range(int(sys.argv[1]) // 20):
    sys.stdout.write(line)
sys.stdout.flush()
print("seconds", time.perf_counter() - start, file=sys.stderr)
"""


def follow(seed: int) -> dict[str, float]:
    """Time a program that writes as fast as it can, alone and followed, in turns; both write to files."""
    from loopwise.tune import job_of, run

    lines, times = LINES // 10 if QUICK else LINES, {"alone": [], "followed": []}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "writer.py").write_text(WRITER)
        command = [sys.executable, "-u", f"{folder}/writer.py", str(lines)]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        for number in range(5):
            with open(f"{folder}/out", "wb") as out:
                done = subprocess.run(
                    command, stdout=out, stderr=subprocess.PIPE, text=True, env=environment, check=True
                )
            times["alone"].append(float(done.stderr.split()[1]))
            run(job_of(described(" ".join(command), trials=1), "job"), f"{folder}/run{number}")
            stderr = Path(f"{folder}/run{number}/tune/trials/00000/0/stderr").read_text()
            times["followed"].append(float(stderr.split()[1]))
    return {name: min(values) for name, values in times.items()}


TUNER = """
import json, sys
from loopwise.tune import job_of, run
run(job_of(json.load(open(sys.argv[1])), "job"), sys.argv[2], resume=True)
"""
PROGRAM = "import sys, time\nfor i in range(4):\n    time.sleep(0.1)\n    print(f'loss={sys.argv[1]}', flush=True)\n"


def kills(seed: int) -> dict[str, float]:
    """Kill tuner, supervisor or program at random moments, resume, and compare what is recorded with what ran."""
    from loopwise.programs.processes import identity
    from loopwise.tune.trials import recorded

    draws, count = random.Random(seed), KILLS // 10 if QUICK else KILLS
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text(PROGRAM)
        Path(folder, "tuner.py").write_text(TUNER)
        content = described(
            f"{sys.executable} {folder}/train.py {{x}}", trials=10_000, parallel=3, retries=30
        )
        before: dict[int, Any] = {}
        lost = changed = 0
        for number in range(count + 1):
            content["limits"]["trials"] = len(before) + 6
            Path(folder, "job.json").write_text(json.dumps(content))
            tuner = subprocess.Popen(
                [sys.executable, f"{folder}/tuner.py", f"{folder}/job.json", f"{folder}/run"]
            )
            if number < count:
                _kill(Path(folder), tuner, draws)
            if tuner.wait() and number == count:
                raise RuntimeError(f"the last tuner ended with {tuner.returncode}")
            records = recorded(f"{folder}/run") if Path(folder, "run/run.json").exists() else []
            after = {trial.number: (trial.state, trial.objective) for trial in records}
            lost += len(before.keys() - after.keys())
            changed += sum(after[key] != value for key, value in before.items() if key in after)
            changed += sum(times > 1 for times in Counter(trial.number for trial in records).values())
            before = after
        time.sleep(1)
        pids = [json.loads(path.read_text()) for path in Path(folder).glob("run/tune/trials/*/*/pid")]
        orphans = sum(identity(known["pid"]) == known for known in pids)
        failed = sum(state == "failed" for state, _ in before.values())
    return {
        "kills": count,
        "lost": lost,
        "twice": changed,
        "orphans": orphans,
        "failed": failed,
        "trials": len(before),
    }


def _kill(folder: Path, tuner: subprocess.Popen[bytes], draws: random.Random) -> None:
    """Wait until trials run, and kill one of the three kinds of processes."""
    running: list[int] = []
    while not running and tuner.poll() is None:
        time.sleep(0.02)
        paths = folder.glob("run/tune/trials/*/*/pid")
        running = [
            json.loads(path.read_text())["pid"] for path in paths if not (path.parent / "exit").exists()
        ]
    time.sleep(draws.random() * 0.6)
    kind = draws.choice(["tuner", "tuner", "supervisor", "program"])
    targets = [tuner.pid]
    if kind != "tuner" and running:
        targets = [draws.choice(running)]
        if kind == "program":
            children = f"/proc/{targets[0]}/task/{targets[0]}/children"
            targets = (
                [int(pid) for pid in Path(children).read_text().split()] if os.path.exists(children) else []
            )
    for pid in targets:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {
        "log.re2": lambda seed: log(r"\b", seed),
        "log.refused by re2": lambda seed: log(r"(?<!\w)", seed),
        "own time": own_time,
        "follow": follow,
        "kills": kills,
    }


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    table = []
    for case, bar in (("log.re2", 5), ("log.refused by re2", 12)):
        name = f"100 MB of log, 40 expressions, {case.partition('.')[2]}: processor time"
        table.append(Row(name, runs[case]["seconds per 100 MB"], None, "", "s", f"ours <= {bar}"))
    own = runs["own time"]
    table.append(Row("own processor time of a trial", own["ms per trial"], None, "", "ms", "ours <= 10"))
    table.append(Row("the same with storage and sampler", own["ms with the study"], None, "", "ms", None))
    beside = runs["follow"]
    name = "a program that writes as fast as it can, followed"
    table.append(Row(name, beside["followed"], beside["alone"], "alone", "s", "ratio <= 1.05"))
    found = runs["kills"]
    table.append(
        Row("kills of tuner, supervisor or program", [sum(found["kills"])], None, "", "", "ours >= 200")
    )
    for quantity, name in (
        ("lost", "finished trials lost"),
        ("twice", "counted twice or changed"),
        ("orphans", "orphans"),
    ):
        table.append(Row(f"kills: {name}", [sum(found[quantity])], None, "", "", "ours <= 0"))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
