"""Run one program, and own every process that it starts.  The standard library only: each trial has such a process.

Runs in a session of its own, with the arguments FOLDER and LIFELINE.  FOLDER holds ``start.json`` with the program's arguments,
environment, working folder, and the seconds that it may take; the file is removed when it was read.  LIFELINE, which may be
left out, is the number of a file descriptor, the read end of a pipe: when its write end is closed, for instance because its
owner was killed, the program is killed with all of its processes, and FOLDER is removed, since nobody reads it any more.

Written by this process:

``lock``     locked for as long as this process lives
``pid``      JSON: pid, start time and boot of this process; written before the program starts
``stdout``, ``stderr``   what the program prints
``exit``     JSON: code, reason (``ended``, ``stopped``, ``time``, ``not started``, ``abandoned``), the time, and the seconds
             since the program started; written when all processes have ended

A tuner that takes the folder over and finds it unlocked writes ``abandoned``: a supervisor that starts later does nothing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from loopwise.programs.locks import locked
from loopwise.programs.processes import (
    POLL,
    adopt_orphans,
    end_descendants,
    identity,
    kill_marked,
    write_json,
)

GRACE = 10.0
"""Seconds between the request to end and the kill."""
PARAMETERS = "LOOPWISE_PARAMETERS"
"""Variable with the path of the attempt's parameters, by which its processes are recognised, too."""


def end_left(folder: str) -> None:
    """Kill what a killed supervisor left behind: processes with the folder in their environment, and those below."""
    kill_marked(f"{PARAMETERS}={folder}/params.json", GRACE)


class Supervisor:
    """Supervisor of one program.

    Args:
        folder: the attempt's folder.
        lifeline: file descriptor whose end of file ends the program; ``None``: the program does not depend on another process.
    """

    def __init__(self, folder: str, lifeline: int | None = None) -> None:
        self.folder, self.reason, self._asked, self._lifeline = folder, "ended", False, lifeline
        with open(f"{folder}/start.json") as file:
            self.start: dict[str, Any] = json.load(file)
        os.unlink(f"{folder}/start.json")  # the environment may hold secrets, and the folder is kept

    def run(self) -> None:
        """Run the program until it and all of its processes have ended."""
        adopt_orphans()
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        write_json(f"{self.folder}/pid", identity(os.getpid()))
        code, began = None, time.monotonic()
        try:
            with open(f"{self.folder}/stdout", "ab") as out, open(f"{self.folder}/stderr", "ab") as err:
                program = subprocess.Popen(
                    self.start["arguments"],
                    cwd=self.start["folder"],
                    env=self.start["environment"],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
            with open(f"{self.folder}/stderr", "a") as err:
                err.write(f"{error}\n")
            self.reason = "not started"
        else:
            code = self._wait(program)
        seconds = time.monotonic() - began
        ending = {"code": code, "reason": self.reason, "time": time.time(), "seconds": seconds}
        write_json(f"{self.folder}/exit", ending)
        if self.reason == "abandoned":
            import shutil  # here, since it takes longer to import than all others

            shutil.rmtree(self.folder, ignore_errors=True)

    def _stop(self, number: int, frame: Any) -> None:
        self._asked = True

    def _wait(self, program: subprocess.Popen[bytes]) -> int:
        limit, began = self.start["seconds"], time.monotonic()
        while program.poll() is None and self.reason == "ended":
            if self._asked:
                self.reason = "stopped"
            elif limit is not None and time.monotonic() - began > limit:
                self.reason = "time"
            elif self._lifeline is None:
                time.sleep(POLL)
            elif select.select([self._lifeline], [], [], POLL)[0]:
                self.reason = "abandoned"  # what it runs on is in use by others already: no grace
        end_descendants(program, 0 if self.reason == "abandoned" else GRACE)
        return program.wait()


def abandoned(folder: str) -> bool:
    """Return whether no supervisor runs the attempt in ``folder``; from then on none will."""
    with locked(f"{folder}/lock") as holds:
        if holds:
            open(f"{folder}/abandoned", "w").close()
        return holds


def main(folder: str, lifeline: int | None = None) -> None:
    """Run the attempt in ``folder``, unless another supervisor runs it or a tuner has given it up.

    With a lifeline the process that was started ends at once, and its child supervises: processes of Ray kill their children
    when they end, and the lifeline is to end the whole tree.
    """
    if lifeline is not None and os.fork():
        os._exit(0)
    with locked(f"{folder}/lock", wait=True):  # a tuner holds it for a moment only
        if not any(os.path.exists(f"{folder}/{name}") for name in ("abandoned", "pid")):
            Supervisor(folder, lifeline).run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else None)
