"""Gather what hosts print: each line whole, with the host in front of it."""

from __future__ import annotations

import os
from typing import BinaryIO

LONGEST = 2**16
"""Bytes after which a line without an end is written in parts."""


class Prefixed:
    """Writer of one stream of a host.

    Args:
        host: the host as it is shown: ``data/1``.
        file: file to write to.
    """

    def __init__(self, host: str, file: BinaryIO) -> None:
        self.prefix = f"[{host}] ".encode()
        self._own = f"[{host}:".encode()  # torchrun has written its prefix already
        self._file, self._rest = file, b""

    def feed(self, data: bytes) -> None:
        """Write the lines that ``data`` completes.

        Raises:
            BrokenPipeError: nobody reads the launcher's output any more.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._write(line)
        if lines:
            self._file.flush()

    def end(self) -> None:
        """Write a last line without an end."""
        if self._rest:
            self._write(self._rest)
            self._rest = b""
            self._file.flush()

    def _write(self, line: bytes) -> None:
        shown = line.rstrip(b"\r").rpartition(b"\r")[
            2
        ]  # of a progress bar what a terminal would show in the end
        self._file.write((b"" if shown.startswith(self._own) else self.prefix) + shown + b"\n")


def drain(descriptor: int, writer: Prefixed) -> bool:
    """Write what a pipe has; return whether it goes on."""
    try:
        data = os.read(descriptor, LONGEST)
    except BlockingIOError:
        return True
    if data:
        writer.feed(data)
    return bool(data)
