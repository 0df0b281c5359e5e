"""Run one node of a Ray cluster in the foreground, as the program of a host.

Called with the node's folder and the arguments of ``ray start``.  The file ``ready`` in the folder tells that the node has
joined its cluster.  The program ends with the node, and with a failure, since nobody but the host's owner may end a node.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from loopwise.programs.processes import adopt_orphans, descendants, exit_status

READY = "ready"
NEEDED = ("raylet", "gcs_server")
"""Names of Ray's processes without which a node does not work."""


def run(folder: str, arguments: list[str]) -> int:
    """Start the node and return a status that is not 0 when it has ended."""
    adopt_orphans()  # `ray start` leaves the processes of the node behind
    printed = Path(folder, "start.log")
    with open(printed, "wb") as log:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    if done.returncode:
        print(printed.read_text(errors="replace"), file=sys.stderr)
        return exit_status(done.returncode)
    needed = {pid: name for pid in descendants([os.getpid()]) if (name := _name(pid)) in NEEDED}
    Path(folder, READY).touch()
    while needed:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            break
        if pid in needed:
            print(f"the process {needed[pid]} of Ray has ended", file=sys.stderr)
            return exit_status(os.waitstatus_to_exitcode(status)) or 1
    print("the processes of Ray have ended", file=sys.stderr)
    return 1


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
