"""The launcher ends every process of a job, with the right status, whichever of its processes is ended or killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .. import harness
from ..record import Row

CLAIM = "feed_kills"
QUICK = False
LIMIT = 60.0
"""Seconds after which a job counts as never ended."""
SCRIPT = """
import os, pathlib, subprocess, sys, time
host = os.environ["LOOPWISE_GROUP"]
below = subprocess.Popen(["sleep", "1000"], start_new_session=True)
path = pathlib.Path(sys.argv[1], host)
path.with_suffix(".new").write_text(f"{os.getppid()} {os.getpid()} {below.pid}")
path.with_suffix(".new").rename(path)
while True:
    if pathlib.Path(sys.argv[1], host + "-hoards").exists():
        hoard = [bytearray(2**22) for _ in range(16)]
        os.kill(os.getpid(), 9)
    time.sleep(0.02)
"""
"""A script with a child in a session of its own.  Asked to hoard memory, it ends as the kernel would end it."""
VICTIMS = ("trainer", "data host", "launcher")
WAYS = ("TERM", "KILL", "OOM-like")
EXPECTED = {"TERM": 143, "KILL": 137, "OOM-like": 137}


def end(victim: str, way: str) -> dict[str, float]:
    """Start a job of two hosts, end one of its processes, and look after the others."""
    from loopwise.programs.processes import exit_status, identity

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "script.py").write_text(SCRIPT)
        command = [
            sys.executable,
            "-m",
            "loopwise",
            "feed",
            "launch",
            "--group",
            "dnn=1",
            "--group",
            "data=1",
        ]
        launcher = subprocess.Popen([*command, "script.py", folder], cwd=folder, stderr=subprocess.DEVNULL)
        processes = []
        for host in ("dnn", "data"):
            while not Path(folder, host).exists():
                time.sleep(0.02)
            processes.append([int(number) for number in Path(folder, host).read_text().split()])
        began = time.monotonic()
        if victim == "launcher":
            launcher.send_signal(signal.SIGTERM if way == "TERM" else signal.SIGKILL)
        elif way == "OOM-like":
            Path(folder, ("dnn", "data")[victim == "data host"] + "-hoards").touch()
        else:
            os.kill(processes[victim == "data host"][1], getattr(signal, f"SIG{way}"))
        everything = [launcher.pid, *processes[0], *processes[1]]
        while time.monotonic() - began < LIMIT:
            launcher.poll()
            if not any(identity(pid) for pid in everything):
                break
            time.sleep(0.01)
        seconds = time.monotonic() - began
        for pid in everything:
            if identity(pid):
                os.kill(pid, signal.SIGKILL)
        status = exit_status(launcher.wait())
        return {
            "seconds": seconds,
            "everything ended": float(seconds < 10),
            "right status": float(status == EXPECTED[way]),
        }


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    pairs = [(victim, way) for victim in VICTIMS for way in WAYS]
    return {f"{victim}.{way}": lambda seed, pair=pair: end(*pair) for pair in pairs for victim, way in [pair]}


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    table = []
    for victim in VICTIMS:
        for way in WAYS:
            seconds = runs[f"{victim}.{way}"]["seconds"]
            table.append(
                Row(f"{victim}, {way}: until all processes have ended", seconds, None, "", "s", "ours <= 10")
            )
    for name in ("everything ended", "right status"):
        shares = [value for case in runs.values() for value in case[name]]
        table.append(
            Row(
                f"{name}, of all {len(shares)} jobs",
                [100 * sum(shares) / len(shares)],
                None,
                "",
                "%",
                "ours >= 100",
            )
        )
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
