"""Run one program, and own every process that it starts.  The standard library only: each trial has such a process.

Called as ``python supervise.py FOLDER``, in a session of its own.  FOLDER holds ``start.json`` with the program's
arguments, environment, working folder, and the seconds that it may take; the file is removed when it was read.
Written by this process:

``lock``     locked for as long as this process lives
``pid``      JSON: pid, start time and boot of this process; written before the program starts
``stdout``, ``stderr``   what the program prints
``exit``     JSON: code, reason (``ended``, ``stopped``, ``time``, ``not started``) and the time; written when all processes
             have ended

A tuner that takes the folder over and finds it unlocked writes ``abandoned``: a supervisor that starts later does nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

GRACE = 10.0
"""Seconds between the request to end and the kill."""
PR_SET_CHILD_SUBREAPER = 36
PARAMETERS = "LOOPWISE_PARAMETERS"
"""Variable with the path of the attempt's parameters, by which its processes are recognised, too."""
POLL = 0.05


def identity(pid: int) -> dict[str, Any] | None:
    """Return what identifies a process beyond its number, which is used again; ``None``: it does not run."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
    except OSError:
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return {"pid": pid, "start": int(fields[19]), "boot": boot}


def write(path: str, content: Any) -> None:
    """Write a JSON file in one piece, for the user's eyes only: it may hold an environment with secrets."""
    with open(os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def descendants(roots: Iterable[int]) -> list[int]:
    """Return the processes below others; below a supervisor, orphans that it adopted included."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                children.setdefault(int(file.read().rpartition(b")")[2].split()[1]), []).append(int(name))
    found, waiting = [], list(roots)
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def end(number: int) -> bool:
    """Send a signal to all descendants; return whether there were any."""
    return _send(descendants([os.getpid()]), number)


def end_left(folder: str) -> None:
    """Kill what a killed supervisor left behind: processes with the folder in their environment, and those below."""
    own = f"{PARAMETERS}={folder}/params.json".encode()
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        left = []
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                    left += [int(name)] * (own in file.read().split(b"\0"))
        if not _send([*left, *descendants(left)], signal.SIGKILL):
            return
        time.sleep(POLL)


def _send(processes: list[int], number: int) -> bool:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
    return bool(processes)


class Supervisor:
    """Supervisor of one program.

    Args:
        folder: the attempt's folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder, self.reason, self._asked = folder, "ended", False
        with open(f"{folder}/start.json") as file:
            self.start: dict[str, Any] = json.load(file)
        os.unlink(f"{folder}/start.json")  # the environment may hold secrets, and the folder is kept

    def run(self) -> None:
        """Run the program until it and all of its processes have ended."""
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        write(f"{self.folder}/pid", identity(os.getpid()))
        code: int | None = None
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
        write(f"{self.folder}/exit", {"code": code, "reason": self.reason, "time": time.time()})

    def _stop(self, number: int, frame: Any) -> None:
        self._asked = True

    def _wait(self, program: subprocess.Popen[bytes]) -> int:
        limit, began = self.start["seconds"], time.monotonic()
        while program.poll() is None and self.reason == "ended":
            if self._asked:
                self.reason = "stopped"
            elif limit is not None and time.monotonic() - began > limit:
                self.reason = "time"
            else:
                time.sleep(POLL)
        self._end_all(program)
        return program.wait()

    def _end_all(self, program: subprocess.Popen[bytes]) -> None:
        """Ask all descendants to end, kill those that do not, and return when none is left."""
        deadline = time.monotonic() + GRACE
        alive = end(signal.SIGTERM)
        while alive:
            time.sleep(POLL)
            program.poll()  # takes the program's own status, which waitpid below must not take
            for pid in descendants([os.getpid()]):
                if pid != program.pid:
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(pid, os.WNOHANG)
            alive = end(signal.SIGKILL) if time.monotonic() > deadline else bool(descendants([os.getpid()]))


def abandoned(folder: str) -> bool:
    """Return whether no supervisor runs the attempt in ``folder``; from then on none will."""
    with open(f"{folder}/lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        open(f"{folder}/abandoned", "w").close()
    return True


def main(folder: str) -> None:
    """Run the attempt in ``folder``, unless another supervisor runs it or a tuner has given it up."""
    with open(f"{folder}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a tuner holds it for a moment only
        if not any(os.path.exists(f"{folder}/{name}") for name in ("abandoned", "pid")):
            Supervisor(folder).run()


if __name__ == "__main__":
    main(sys.argv[1])
