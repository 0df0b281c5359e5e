"""Code that runs on the nodes of a cluster: the standard library, and Ray, which ships it by value; no import of Loopwise."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

PYTHON = [sys.executable, "-E", "-s", "-S"]
"""Interpreter that finds the supervisor's code beside the script, and nothing else but the standard library."""
KEPT = 86_400.0
"""Seconds for which a node keeps an attempt that has ended and that no tuner asks for."""


class Node:
    """Actor that owns the supervisor of one attempt.

    The supervisor holds the read end of a pipe and this process its write end: if this process is killed, the kernel closes
    the pipe, and the supervisor ends the program and all of its processes.  A second pipe in the other direction tells that
    the supervisor has ended.  It is no child of this process, which kills its children when its node ends.

    Args:
        sources: path -> text of the supervisor's code.
        start: content of its ``start.json``, without the environment.
        variables: name -> value of those that the program gets beside the node's own.
        values: content of ``params.json``.
    """

    def __init__(
        self,
        sources: dict[str, str],
        start: dict[str, Any],
        variables: dict[str, str],
        values: dict[str, Any],
    ) -> None:
        import ray

        self.folder = tempfile.mkdtemp(prefix="loopwise-")
        self._asked = time.monotonic()
        parameters = f"{self.folder}/params.json"
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        start = {**start, "folder": start["folder"] or os.getcwd()}
        start["environment"] = {**own, **variables, "LOOPWISE_PARAMETERS": parameters}
        for path, content in ((parameters, values), (f"{self.folder}/start.json", start)):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                json.dump(content, file)
        for path, text in sources.items():
            os.makedirs(os.path.dirname(f"{self.folder}/{path}"), exist_ok=True)
            with open(f"{self.folder}/{path}", "w") as file:
                file.write(text)
        lifeline, self._lifeline = os.pipe()
        self._ended, end = os.pipe()
        subprocess.run(
            [*PYTHON, f"{self.folder}/supervise.py", self.folder, str(lifeline)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(lifeline, end),
            check=True,
        )
        os.close(lifeline)
        os.close(end)  # the supervisor has the only copy
        node = ray.get_runtime_context().get_node_id()
        self._place = {
            "node": node,
            "host": socket.gethostname(),
            "folder": self.folder,
            "actor": os.getpid(),
        }
        threading.Thread(target=self._end_if_forgotten, daemon=True).start()

    def follow(self, read: dict[str, int], most: int, stop: bool) -> dict[str, Any]:
        """Return what the program has printed, and how it ended when all of that was returned.

        Args:
            read: stream -> number of its bytes that were read before.
            most: most bytes of a stream to return.
            stop: end the program.
        """
        self._asked = time.monotonic()
        alive = self._lives()  # asked before reading, so that nothing is printed after the last look
        if stop and alive:
            with (
                contextlib.suppress(
                    FileNotFoundError, ProcessLookupError
                ),  # it does not listen yet, or has just ended
                open(f"{self.folder}/pid") as file,
            ):
                os.kill(json.load(file)["pid"], signal.SIGTERM)
        answer: dict[str, Any] = {"data": {}, "place": self._place, "over": False, "ending": None}
        for stream, place in read.items():
            with contextlib.suppress(FileNotFoundError), open(f"{self.folder}/{stream}", "rb") as file:
                file.seek(place)
                answer["data"][stream] = file.read(most)
        more = any(len(data) == most for data in answer["data"].values())
        if not alive and not more:
            answer["over"] = True
            with contextlib.suppress(FileNotFoundError), open(f"{self.folder}/exit") as file:
                answer["ending"] = json.load(file)
        return answer

    def _lives(self) -> bool:
        """Return whether the supervisor runs, which holds the write end of a pipe."""
        return not select.select([self._ended], [], [], 0)[0]

    def leave(self) -> None:
        """Remove the attempt's folder, and end this process; what the program left behind if its supervisor was killed, too."""
        import ray

        end_left(self.folder)
        ray.actor.exit_actor()

    def _end_if_forgotten(self) -> None:
        """End this process if the attempt has ended, and no tuner has asked for it for a day: it holds CPUs and GPUs."""
        while self._lives() or time.monotonic() - self._asked < KEPT:
            time.sleep(60)
        shutil.rmtree(self.folder, ignore_errors=True)
        os._exit(0)


def end_left(folder: str) -> None:
    """Kill the processes of an attempt whose supervisor was killed, and remove its folder from this node."""
    if os.path.exists(f"{folder}/supervise.py"):
        code = f"import sys; sys.path.insert(0, {folder!r}); import supervise; supervise.end_left({folder!r})"
        subprocess.run([*PYTHON, "-c", code], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def missing(folder: str | None, program: str, marker: str | None) -> str:
    """Return what a trial would not find on this node; empty: it finds all.

    Args:
        folder: the folder in which programs start; ``None``: Ray's copy of the working folder.
        program: the program of the command; empty: it differs by trial.
        marker: file that is on a file system which the nodes share; ``None``: none has to be.
    """
    where = f"{socket.gethostname()}: "
    if folder is not None and not os.path.isdir(folder):
        return f"{where}no folder {folder!r}"
    path = os.path.join(folder or os.getcwd(), program) if "/" in program else program
    if program and shutil.which(path) is None:
        return f"{where}no program {program!r}"
    if marker is not None and not os.path.exists(marker):
        return f"{where}no folder {os.path.dirname(marker)!r}"
    return ""
