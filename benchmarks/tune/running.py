"""Tuning of programs: logs per second, the tuner's own time, and a trial's time beside it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import harness
from ..record import Row

CLAIM = "tune_running"
QUICK = False
MEGABYTES, TRIALS, LINES = 100, 1000, 2_000_000
"""Sizes of a run."""
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


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {
        "log.re2": lambda seed: log(r"\b", seed),
        "log.refused by re2": lambda seed: log(r"(?<!\w)", seed),
        "own time": own_time,
        "follow": follow,
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
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
