"""Start ``loopwise feed launch`` in a process, and find the processes of its hosts."""

import os
import signal
import subprocess
import sys
import textwrap
import time

from loopwise.programs.processes import descendants, identity

PATIENCE = 300
WAITING = """
import os, pathlib, subprocess, sys, time
host = os.environ["LOOPWISE_GROUP"] + "-" + os.environ["LOOPWISE_GROUP_NODE"]
below = subprocess.Popen(["sleep", "1000"], start_new_session=True)  # it would outlive the script
path = pathlib.Path(sys.argv[1], host)
path.with_suffix(".new").write_text(f"{os.getppid()} {os.getpid()} {below.pid}")
path.with_suffix(".new").rename(path)
while not pathlib.Path(sys.argv[1], "end").exists() or host.startswith("data"):
    time.sleep(0.05)
"""
"""Script that writes the numbers of its host's processes and waits: training for a file, other groups for ever."""


def script(folder, text=WAITING):
    path = folder / "script.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def start(folder, *options, text=WAITING, arguments=None):
    """Start the launcher in ``folder`` with two hosts, unless the options name other groups."""
    groups = () if "--group" in options else ("--group", "dnn=1", "--group", "data=1")
    given = [str(folder)] if arguments is None else arguments
    return subprocess.Popen(
        [sys.executable, "-m", "loopwise", "feed", "launch", *groups, *options, script(folder, text), *given],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(folder, *options, **others):
    """Run the launcher to its end and return its status and what it printed."""
    process = start(folder, *options, **others)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def pids(folder, host):
    """Return the processes of a host after it has started: owner, script, and a child in a session of its own."""
    deadline = time.monotonic() + PATIENCE
    while not (folder / host).exists():
        assert time.monotonic() < deadline, f"{host} did not start"
        time.sleep(0.02)
    return [int(number) for number in (folder / host).read_text().split()]


def alive(numbers):
    return [number for number in numbers if identity(number) is not None]


def wait_for_end(numbers, seconds=PATIENCE):
    """Wait until all processes have ended and return the seconds that it took."""
    began = time.monotonic()
    while left := alive(numbers):
        assert time.monotonic() - began < seconds, f"processes still run: {left}"
        time.sleep(0.01)
    return time.monotonic() - began


def kill(process):
    """End a launcher and all below it after a failed test."""
    for pid in (*descendants([process.pid]), process.pid):
        if identity(pid) is not None:
            os.kill(pid, signal.SIGKILL)
    process.communicate()
