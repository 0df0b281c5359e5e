"""Kills of nodes of a Ray cluster at random moments: what is recorded afterwards, and what still runs."""

from __future__ import annotations

import json
import os
import random
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
from .running import described

CLAIM = "tune_ray_kills"
QUICK = False
KILLS = 20
NODES = 3
"""Nodes for trials, of one CPU each; the head node runs none."""
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "2",
}
"""Settings by which a dead node is noticed in seconds; Ray's own take about 15."""
MEMORY = 80_000_000
PROGRAM = """
echo $$ > "$2/pids/$(basename "$(dirname "$LOOPWISE_PARAMETERS")")"
for step in 1 2 3 4 5 6; do
    sleep 0.5
    echo "loss=$1"
done
"""
TUNER = """
import json, sys
from loopwise.tune import job_of, run
run(job_of(json.load(open(sys.argv[1])), "job"), sys.argv[2])
"""


def ray_kills(seed: int) -> dict[str, float]:
    """Run one job on a cluster whose nodes are killed one after the other, and replaced by new ones."""
    os.environ.update(SETTINGS)
    from ray.cluster_utils import Cluster

    draws, count = random.Random(seed), 2 if QUICK else KILLS
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(NODES)]
    trials = 4 * count
    with tempfile.TemporaryDirectory() as folder:
        try:
            tuner = _tuner(folder, cluster.address, trials)
            kills = hit = outlived = 0
            while kills < count and tuner.poll() is None:
                busy = _wait_for_trials(Path(folder), tuner)
                time.sleep(draws.random() * 3)
                number = draws.randrange(NODES)
                hit += nodes[number].node_id in busy
                killed = nodes[number].node_id
                cluster.remove_node(nodes[number], allow_graceful=False)
                kills += 1
                outlived += _outlived(Path(folder), killed)
                nodes[number] = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
            if tuner.wait():
                raise RuntimeError(f"the tuner ended with {tuner.returncode}")
        finally:
            cluster.shutdown()
        return _counts(Path(folder), trials) | {
            "kills": kills,
            "of nodes with trials": hit,
            "outlived": outlived,
        }


def _tuner(folder: str, address: str, trials: int) -> subprocess.Popen[bytes]:
    Path(folder, "pids").mkdir()
    Path(folder, "train").write_text(PROGRAM)
    Path(folder, "tuner.py").write_text(TUNER)
    content = described(f"sh {folder}/train {{x}} {folder}", trials=trials, parallel=NODES)
    content |= {"engine": "ray", "cluster": {"address": address}}
    Path(folder, "job.json").write_text(json.dumps(content))
    command = [sys.executable, f"{folder}/tuner.py", f"{folder}/job.json", f"{folder}/run"]
    return subprocess.Popen(command, cwd=folder)


def _wait_for_trials(folder: Path, tuner: subprocess.Popen[bytes]) -> set[str]:
    """Wait until trials run, and return their nodes."""
    running: set[str] = set()
    while not running and tuner.poll() is None:
        time.sleep(0.05)
        places = folder.glob("run/tune/trials/*/*/place.json")
        running = {
            json.loads(path.read_text())["node"]
            for path in places
            if not (path.parent / "exit").exists()
            and not (path.parents[1] / str(int(path.parent.name) + 1)).exists()
        }
    return running


def _outlived(folder: Path, node: str) -> int:
    """Wait for two seconds, less than a trial takes, and count the programs that still run on a node that was killed."""
    time.sleep(2)
    places = [json.loads(path.read_text()) for path in folder.glob("run/tune/trials/*/*/place.json")]
    pids = [folder / "pids" / Path(place["folder"]).name for place in places if place["node"] == node]
    return sum(_runs(int(path.read_text())) for path in pids if path.exists())


def _counts(folder: Path, trials: int) -> dict[str, Any]:
    from loopwise.tune.trials import recorded

    records = recorded(str(folder / "run"))
    times = Counter(trial.number for trial in records)
    pids = [int(path.read_text()) for path in (folder / "pids").iterdir()]
    return {
        "trials": trials,
        "lost": trials - len(times),
        "twice": sum(count > 1 for count in times.values()),
        "failed": sum(trial.state == "failed" for trial in records),
        "repeated": sum(trial.attempts > 1 for trial in records),
        "orphans": sum(map(_runs, pids)),
    }


def _runs(pid: int) -> bool:
    """Return whether a program of a trial runs; its number may have been used again."""
    try:
        return b"train" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {"ray_kills": ray_kills}


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    found = {quantity: [sum(values)] for quantity, values in runs["ray_kills"].items()}
    table = [Row("kills of a node", found["kills"], None, "", "", "ours >= 20")]
    table += [
        Row(name, found[quantity], None, "", "", None)
        for quantity, name in (
            ("of nodes with trials", "of them, of a node that ran a trial up to three seconds before"),
            ("trials", "trials"),
            ("repeated", "trials that were repeated"),
            ("failed", "trials given up, since each of four attempts met a kill"),
        )
    ]
    for quantity, name in (
        ("lost", "finished trials lost"),
        ("twice", "counted twice"),
        ("outlived", "programs that outlived their node by two seconds"),
        ("orphans", "orphans at the end"),
    ):
        table.append(Row(f"kills: {name}", found[quantity], None, "", "", "ours <= 0"))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
