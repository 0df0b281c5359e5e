"""One attempt at a trial: start its supervisor, follow its logs, recognise it after the tuner was killed, end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopwise.programs.processes import identity, write_json

from ..log.curves import Curve, Definition, Reader
from . import supervise

BLOCK = 2**22
"""Most bytes of a stream that one ``follow`` reads."""
STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Invocation:
    """Program of an attempt.

    Attributes:
        arguments: the program and its arguments.
        variables: name -> value of those that the tuner sets.
        folder: working folder.
        values: written to ``params.json`` for the program.
        seconds: time limit; ``None``: none.
    """

    arguments: list[str]
    variables: dict[str, str]
    folder: str
    values: Mapping[str, Any]
    seconds: float | None


class Attempt:
    """Folder of an attempt, and the process that runs it.

    Args:
        folder: the attempt's folder; it is made if it does not exist.
        definitions: the metrics to read from its logs.

    Attributes:
        read: bytes read from each stream.
        loss: why it has ended without a code.
    """

    STARTED = "pid"
    """File that is written when the program starts."""

    def __init__(self, folder: Path, definitions: list[Definition]) -> None:
        self.folder = folder
        self.reader = Reader(definitions)
        self.read = dict.fromkeys(STREAMS, 0)
        self.loss = "its supervisor was killed"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, invocation: Invocation, environment: Mapping[str, str], keep: Iterable[int] = ()) -> None:
        """Start the supervisor, which starts the program.

        Args:
            invocation: the program.
            environment: all of its variables.
            keep: file descriptors that the supervisor holds open until all processes have ended.
        """
        self.prepare(invocation, environment)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", supervise.__name__, str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=tuple(keep),
        )

    def prepare(self, invocation: Invocation, environment: Mapping[str, str] | None) -> None:
        """Write the parameters, and ``start.json`` if an environment is given."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(f"{self.folder}/params.json", dict(invocation.values))
        if environment is not None:
            start = {
                "arguments": invocation.arguments,
                "environment": {**environment, supervise.PARAMETERS: f"{self.folder}/params.json"},
                "folder": invocation.folder,
                "seconds": invocation.seconds,
            }
            write_json(f"{self.folder}/start.json", start)

    def alive(self) -> bool:
        """Return whether the supervisor runs, started by this process or by an earlier one."""
        if self._process is not None:
            return self._process.poll() is None
        return self.folder.exists() and self.ending() is None and not supervise.abandoned(str(self.folder))

    def ending(self) -> dict[str, Any] | None:
        """Return code, reason and time of the end; ``None``: the attempt has not ended, or its supervisor was killed."""
        ending: dict[str, Any] | None = self._json("exit")
        return ending

    def seconds(self, alive: bool) -> float:
        """Return the time since the supervisor started the program until now, or until the attempt ended."""
        ending = self.ending()
        if ending is not None:
            return float(ending["seconds"])
        began = self._changed(self.STARTED)
        if began is None:
            return 0.0
        last = time.time() if alive else max(self._changed(stream) or began for stream in STREAMS)
        return max(0.0, last - began)

    def _changed(self, name: str) -> float | None:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / name).stat().st_mtime
        return None

    def follow(self) -> bool:
        """Read what the program has printed since the last call; return whether more may be waiting."""
        more = False
        for stream in STREAMS:
            with contextlib.suppress(FileNotFoundError), open(self.folder / stream, "rb") as file:
                file.seek(self.read[stream])
                data = file.read(BLOCK)
                self.read[stream] += len(data)
                if data:
                    self.reader.feed(data, stream)
                more = more or len(data) == BLOCK
        return more

    def drain(self) -> dict[str, Curve]:
        """Read the logs to their ends and return the curves."""
        while self.follow():
            pass
        self.reader.end()
        return self.reader.curves

    def stop(self) -> None:
        """Ask the supervisor to end the program and all of its processes."""
        known = self._json("pid")
        if known is not None and identity(known["pid"]) == known:
            with contextlib.suppress(ProcessLookupError):
                os.kill(known["pid"], signal.SIGTERM)

    def end_left(self) -> None:
        """Kill what the supervisor left behind if it was killed itself."""
        if self.ending() is None:
            supervise.end_left(str(self.folder))

    def mark(self, reason: str) -> None:
        """Record why the attempt is to be stopped, for a tuner that takes it over."""
        write_json(f"{self.folder}/stopped", reason)

    def marked(self) -> str:
        """Return why the attempt is to be stopped; empty: it is not."""
        return str(self._json("stopped") or "")

    def mark_judged(self, reports: int) -> None:
        """Record that the first reports of the objective were judged, for a tuner that takes the attempt over."""
        (self.folder / "judged").write_text(str(reports))  # at once: this is called at each look

    def judged(self) -> int:
        """Return how many reports were judged."""
        return int(self._json("judged") or 0)

    def tail(self, lines: int = 10) -> list[str]:
        """Return the last lines of stderr, or of stdout if that is empty."""
        for stream in reversed(STREAMS):
            last = self.last(stream, 2**14).splitlines()[-lines:]
            if any(line.strip() for line in last):
                return last
        return []

    def last(self, stream: str, most: int) -> str:
        """Return the last ``most`` bytes of a stream as text; empty: nothing was printed."""
        with contextlib.suppress(FileNotFoundError), open(self.folder / stream, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - most))
            return file.read().decode(errors="replace")
        return ""

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text())
        except (FileNotFoundError, ValueError, RecursionError):
            return None
