"""Copies of an interpreter that has imported torch, for the many processes that tests start.

Importing torch with its compiler takes seconds of a core, a fork of a process that has done so milliseconds.  Whoever needs
a process begins ``forks.python()`` instead of ``sys.executable``: a small program that asks a server for a copy of itself,
gives it arguments, environment, folder and the three streams, passes signals on, and ends as the copy does.  ``-c``, ``-m``,
a script, ``-u`` and ``-W`` are understood.  Two servers have different seeds of hashes, and ranks take turns: an order of a
set differs between ranks, as it does between two interpreters.  Tests of imports, and of what an interpreter does when it
is taken apart at its end, start an interpreter.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

VARIABLE = "LOOPWISE_FORKS"
HERE = Path(__file__).parent


def python():
    """Return the path of the program that behaves like an interpreter with torch in it."""
    return f"{os.environ[VARIABLE]}/python"


def pid(process):
    """Return the number of the copy whose code has begun."""
    return int(Path(os.environ[VARIABLE], str(process.pid)).read_text())


def kill(process):
    """Kill the copy whose code has begun, and wait until it has ended."""
    os.kill(pid(process), signal.SIGKILL)
    process.wait()


def start(folder):
    """Start the servers in an empty folder and return them; they import torch when the first process is wanted."""
    program = Path(folder, "python")
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {HERE}/client.py {folder} "$@"\n')
    program.chmod(0o755)
    os.environ[VARIABLE] = str(folder)
    return [
        subprocess.Popen(
            [sys.executable, HERE / "server.py", Path(folder, str(number))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONHASHSEED": str(number + 1)},
            start_new_session=True,
        )
        for number in range(2)
    ]


def stop(servers):
    """End the servers, which wait for their copies."""
    for server in servers:
        server.stdin.close()
    for server in servers:
        server.wait()
    del os.environ[VARIABLE]
