"""Start, follow and end the process that owns one host's script."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import IO, Any, BinaryIO

from loopwise.programs.processes import exit_status, kill_marked

from . import node as runner
from .environment import JOB, Host
from .output import Prefixed, drain

LAST_WORDS = 1.0
"""Seconds for which output is read after all processes of a host have ended."""


class Running:
    """The running script of a host.

    Args:
        host: the host.
        job: text that identifies the job.
        outputs: the launcher's standard output and error, as files of bytes.
    """

    def __init__(self, host: Host, job: str, outputs: tuple[BinaryIO, BinaryIO]) -> None:
        self.host, self.mark = host, f"{job}/{host}"
        self.ended: float | None = None
        """Time of the end, in seconds of ``time.monotonic``."""
        self.asked = False
        """The launcher asked for the end."""
        self._outputs = outputs
        self._process: subprocess.Popen[bytes] | None = None
        self.streams: dict[int, Prefixed] = {}
        """Descriptors of pipes -> the writers of what they bring."""
        self._pipes: list[IO[bytes]] = []

    def start(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        folder: str,
        grace: float = runner.GRACE,
        scratch: str | None = None,
    ) -> None:
        """Start the process.

        Args:
            arguments: the program and its arguments.
            environment: all of its variables.
            folder: its working folder.
            grace: seconds between the request to end and the kill.
            scratch: folder that is deleted after all processes of the host have ended.
        """
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", runner.__name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, JOB: self.mark},
            start_new_session=True,
        )
        assert process.stdin is not None
        self._process, self._pipes = process, [pipe for pipe in (process.stdout, process.stderr) if pipe]
        for pipe, file in zip(self._pipes, self._outputs, strict=True):
            os.set_blocking(pipe.fileno(), False)
            self.streams[pipe.fileno()] = Prefixed(str(self.host), file)
        variables = {**environment, JOB: self.mark}
        start: dict[str, Any] = {"arguments": arguments, "environment": variables, "folder": folder}
        start |= {"grace": grace, "scratch": scratch}
        with contextlib.suppress(BrokenPipeError):  # it was killed already
            process.stdin.write(json.dumps(start).encode() + b"\n")
            process.stdin.flush()

    def status(self) -> int | None:
        """Return the exit status as a shell shows it; ``None``: the script runs."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None and self.ended is None:
            self.ended = time.monotonic()
            if code < 0:  # killed before it could end what it started
                kill_marked(f"{JOB}={self.mark}", 5.0)
        return None if code is None else exit_status(code)

    def forward(self, descriptor: int) -> None:
        """Write what a pipe has brought, and forget the pipe at its end."""
        if not drain(descriptor, self.streams[descriptor]):
            self.streams.pop(descriptor).end()

    def silent(self) -> bool:
        """Return whether everything that the host printed is written."""
        return not self.streams or (self.ended is not None and time.monotonic() - self.ended > LAST_WORDS)

    def stop(self) -> None:
        """Ask for the end of the script and of all its processes."""
        self.asked = True
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def close(self) -> None:
        """Kill what still runs, and release the pipes."""
        if self._process is None:
            return
        self.stop()
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(runner.GRACE + 2)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            kill_marked(f"{JOB}={self.mark}", 5.0)
        for pipe in self._pipes:
            pipe.close()
