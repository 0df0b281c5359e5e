"""One attempt at a trial: start its supervisor, follow its logs, recognise it after the tuner was killed, end it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loopwise.programs.processes import identity, write_json

from ..log.curves import Curve, Definition, Reader
from . import supervise

BLOCK = 2**22
"""Most bytes of a stream that one ``follow`` reads."""
STREAMS = ("stdout", "stderr")


class Attempt:
    """Folder of an attempt, and the process that runs it.

    Args:
        folder: the attempt's folder; it is made if it does not exist.
        definitions: the metrics to read from its logs.

    Attributes:
        read: bytes read from each stream.
    """

    def __init__(self, folder: Path, definitions: list[Definition]) -> None:
        self.folder = folder
        self.reader = Reader(definitions)
        self.read = dict.fromkeys(STREAMS, 0)
        self._process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        folder: str,
        parameters: Mapping[str, Any],
        seconds: float | None,
    ) -> None:
        """Start the supervisor, which starts the program.

        Args:
            arguments: the program and its arguments.
            environment: all of its variables.
            folder: its working folder.
            parameters: written to ``params.json`` for the program.
            seconds: time limit; ``None``: none.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(f"{self.folder}/params.json", dict(parameters))
        start = {
            "arguments": arguments,
            "environment": dict(environment),
            "folder": folder,
            "seconds": seconds,
        }
        write_json(f"{self.folder}/start.json", start)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", supervise.__name__, str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def alive(self) -> bool:
        """Return whether the supervisor runs, started by this process or by an earlier one."""
        if self._process is not None:
            return self._process.poll() is None
        return self.folder.exists() and self.ending() is None and not supervise.abandoned(str(self.folder))

    def ending(self) -> dict[str, Any] | None:
        """Return code, reason and time of the end; ``None``: the attempt has not ended, or its supervisor was killed."""
        ending: dict[str, Any] | None = self._json("exit")
        return ending

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
        except (FileNotFoundError, json.JSONDecodeError):
            return None
