"""Own whole trees of processes: recognise a process, list and end those below it, adopt orphans.

It imports the standard library and ``loopwise.storage.files`` alone, and is sent to nodes of clusters with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from typing import Any

from loopwise.storage.files import replace_file

POLL = 0.05
"""Seconds between two looks at processes that are to end."""
PR_SET_CHILD_SUBREAPER = 36


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


def exit_status(code: int) -> int:
    """Return the status that a shell shows for a return code of ``subprocess``: 128 + n for the signal n."""
    return code if code >= 0 else 128 - code


def write_json(path: str, content: Any) -> None:
    """Write a JSON file in one piece, for the user's eyes only: it may hold an environment with secrets."""
    replace_file(path, json.dumps(content).encode(), private=True)


def adopt_orphans() -> None:
    """Make this process the parent of all orphans below it, so that ``descendants`` has them."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(roots: Iterable[int]) -> list[int]:
    """Return the processes below others; below a process that adopts orphans, those included."""
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


def send(processes: list[int], number: int) -> bool:
    """Send a signal to processes, of which some may have ended; return whether there were any."""
    for pid in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
    return bool(processes)


def end_descendants(program: subprocess.Popen[bytes], grace: float) -> None:
    """Ask all processes below this one to end, kill those that do not, and return when none is left.

    Args:
        program: a child whose status the caller wants; that of all others is thrown away.
        grace: seconds between the request and the kill.
    """
    deadline = time.monotonic() + grace
    alive = send(descendants([os.getpid()]), signal.SIGTERM)
    while alive:
        time.sleep(POLL)
        program.poll()  # takes the program's own status, which waitpid below must not take
        for pid in descendants([os.getpid()]):
            if pid != program.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        below = descendants([os.getpid()])
        alive = send(below, signal.SIGKILL) if time.monotonic() > deadline else bool(below)


def kill_marked(variable: str, seconds: float) -> None:
    """Kill the processes that were started with an environment variable, and all below them.

    Args:
        variable: name and value, as ``NAME=value``.
        seconds: the time after which to give up.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        left = _marked(variable.encode())
        if not send([*left, *descendants(left)], signal.SIGKILL):
            return
        time.sleep(POLL)


def _marked(variable: bytes) -> list[int]:
    marked = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                marked += [int(name)] * (variable in file.read().split(b"\0"))
    return marked
