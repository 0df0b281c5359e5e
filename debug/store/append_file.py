"""Append-only files; bytes that were not committed are removed when a file is closed."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from loopwise.run import is_file_at

LARGE = 2**20
"""Bytes from which on a write bypasses the page cache."""
PAGE = 4096
"""Bytes; a write that bypasses the page cache needs an address, a length and a file position that are multiples."""


class AppendFile:
    """New append-only file; ``close`` removes bytes that were not committed.

    Args:
        path: must not exist.
    """

    def __init__(self, path: str) -> None:
        self.path, self.size = path, 0
        self._direct = hasattr(os, "O_DIRECT")
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def exists(self) -> bool:
        """Return whether the file is still at its path."""
        return is_file_at(self._file, self.path)

    def append(self, chunks: Sequence[Any]) -> None:
        """Write buffers of bytes at the end.

        Raises:
            OSError: the write failed; some of the bytes may be in the file.
        """
        for chunk in chunks:
            rest = memoryview(chunk)
            if len(rest) >= LARGE and self._direct:
                rest = self._write_directly(rest)
            while rest:
                rest = rest[os.write(self._file, rest) :]

    def _write_directly(self, chunk: memoryview) -> memoryview:
        """Write whole pages from memory to disk, and return the rest, which has to go through the page cache.

        The page cache costs this process up to 4 s a GB.  No page is ever written both ways.
        """
        whole = len(chunk) - len(chunk) % PAGE
        address = np.frombuffer(chunk, np.uint8).ctypes.data
        if address % PAGE or os.lseek(self._file, 0, os.SEEK_END) % PAGE:
            return chunk
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:  # this file system cannot
            self._direct = False
            return chunk
        done = 0
        try:
            while done < whole:
                done += os.write(self._file, chunk[done:whole])
        except OSError:
            # larger sectors, or a write that ended at an odd position; a full disk fails again below
            self._direct = False
        finally:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags)
        return chunk[done:]

    def align(self, size: int) -> None:
        """Fill the file up with zeros to a multiple of a page, if the next block of ``size`` bytes is large.

        Raises:
            OSError: the write failed; some of the zeros may be in the file.
        """
        if size >= LARGE and self.size % PAGE:
            self.append([bytes(-self.size % PAGE)])
            self.commit()

    def commit(self) -> None:
        """Keep everything that was appended so far."""
        self.size = os.fstat(self._file).st_size

    def close(self) -> None:
        """Close the file, and delete it if it has no committed bytes."""
        with contextlib.suppress(OSError):
            if os.fstat(self._file).st_size > self.size:
                os.ftruncate(self._file, self.size)
            if not self.size and self.exists():
                os.unlink(self.path)
        os.close(self._file)
