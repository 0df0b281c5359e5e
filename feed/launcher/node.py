"""Run the script on one host, and own every process that it starts.

Runs as a process of its own, in a session of its own.  Its standard input is a pipe from the launcher: one line of JSON, and
then nothing until the launcher ends, in whatever way: a process that is killed closes its pipes.  The line has the program's
``arguments``, ``environment`` and ``folder``, ``grace``, the seconds between the request to end and the kill, and
``scratch``, a folder to delete at the end, or null.  Standard output and error are those of the program.  The exit status is
that of the program as a shell shows it, or 143 if the launcher asked for the end.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from typing import Any

from loopwise.programs.processes import POLL, adopt_orphans, end_descendants, exit_status

GRACE = 5.0
"""Seconds between the request to end and the kill."""
NOT_STARTED = 127
"""Status of a program that could not be started, as a shell has it."""
PR_SET_PDEATHSIG = 1


def run() -> int:
    """Run the program until it, the launcher or a signal ends, and return the exit status."""
    asked: list[int] = []
    adopt_orphans()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: asked.append(number))
    start: dict[str, Any] = json.loads(_line())
    prctl = ctypes.CDLL(None).prctl
    try:
        program = subprocess.Popen(
            start["arguments"],
            cwd=start["folder"],
            env=start["environment"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # This process has one thread only: the signal comes when a thread ends, too.
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
    except OSError as error:
        print(error, file=sys.stderr)
        return NOT_STARTED
    while program.poll() is None and not asked:
        readable, _, _ = select.select([0], [], [], POLL)
        if readable and not os.read(0, 1):
            asked.append(signal.SIGTERM)  # the launcher has ended
    ended = program.poll() is not None
    end_descendants(program, start["grace"])
    if start["scratch"] is not None:
        shutil.rmtree(start["scratch"], ignore_errors=True)
    return exit_status(program.wait() if ended else -asked[0])


def _line() -> bytes:
    """Return the first line of standard input, byte by byte: the rest is left in the pipe."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 1)
        if not part:
            sys.exit(exit_status(-signal.SIGTERM))  # the launcher ended at once
        line += part
    return line


if __name__ == "__main__":
    sys.exit(run())
