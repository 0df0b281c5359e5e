"""Split a growing log into lines, as a terminal would show them one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

LONGEST = 2**20
"""Bytes of a line that are searched at once; a longer line is searched in pieces that overlap."""
OVERLAP = 2**12
_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


class Line(NamedTuple):
    """One line of a log, without its end."""

    text: bytes
    """Valid UTF-8 without escape sequences of a terminal."""
    redrawn: bool
    """The line ended with a carriage return, so that a terminal draws the next one over it."""


class Lines:
    """Lines of a log that is read in pieces.

    Lines end with ``\\r\\n``, ``\\n`` or ``\\r``.  Bytes that are no UTF-8 are replaced; escape sequences and NULs are
    left out.  A line without an end waits for more bytes, or for ``rest``.

    Attributes:
        long: number of lines of more than ``LONGEST`` bytes, which were cut into overlapping pieces.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._cut = False
        self.long = 0

    def feed(self, data: bytes) -> Iterator[Line]:
        """Yield the lines that ``data`` completes."""
        data = self._tail + data
        end = max(data.rfind(b"\n"), data.rfind(b"\r", 0, len(data) - 1))  # a last \r may be half of \r\n
        block, self._tail = data[: end + 1], data[end + 1 :]
        yield from _lines(block)
        if block:
            self._cut = False
        while len(self._tail) > LONGEST:
            self.long += not self._cut
            self._cut = True
            piece, self._tail = self._tail[:LONGEST], self._tail[LONGEST - OVERLAP :]
            yield from _lines(piece)

    def rest(self) -> Iterator[Line]:
        """Yield the last line if it has no end."""
        block, self._tail = self._tail, b""
        yield from _lines(block)


def _lines(block: bytes) -> Iterator[Line]:
    if b"\x1b" in block:
        block = _ESCAPES.sub(b"", block)
    if b"\x00" in block:
        block = block.replace(b"\x00", b"")
    try:
        block.decode()
    except UnicodeDecodeError:
        block = block.decode(errors="replace").encode()
    for line in block.splitlines(keepends=True):
        text = line.rstrip(b"\r\n")
        yield Line(text, line.endswith(b"\r"))
