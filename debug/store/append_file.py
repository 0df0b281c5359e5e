"""Files that are appended to, without anything torn in the end."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

LARGE = 2**20
"""Bytes of a write from which on it goes past the page cache."""
PAGE = 4096
"""Bytes; memory and place in the file of what goes past the page cache have to be multiples of it."""


class Growing:
    """A new file that is appended to; what is not committed is taken back when it is closed.

    Args:
        path: must not be there yet.
    """

    def __init__(self, path: str) -> None:
        self.path, self.size = path, 0
        self._direct = hasattr(os, "O_DIRECT")
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def append(self, chunks: Sequence[Any]) -> None:
        """Write buffers of bytes at the end.

        Raises:
            OSError: some of them may be there.
        """
        for chunk in chunks:
            rest = memoryview(chunk)
            if len(rest) >= LARGE and self._direct:
                rest = self._past_the_cache(rest)
            while rest:
                rest = rest[os.write(self._file, rest) :]

    def _past_the_cache(self, chunk: memoryview) -> memoryview:
        """Write whole pages from memory to disk; what is left has to go through the page cache.

        The page cache costs this process up to 4 s a GB.  No page is ever written both ways.
        """
        whole = len(chunk) - len(chunk) % PAGE
        address = np.frombuffer(chunk, np.uint8).ctypes.data
        if address % PAGE or os.lseek(self._file, 0, os.SEEK_END) % PAGE:
            return chunk
        flags = fcntl.fcntl(self._file, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:  # not on this file system
            self._direct = False
            return chunk
        done = 0
        try:
            while done < whole:
                done += os.write(self._file, chunk[done:whole])
        except OSError:  # larger sectors, a write that ended at an odd place; a full disk says so again
            self._direct = False
        finally:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags)
        return chunk[done:]

    def align(self, size: int) -> None:
        """Fill up with zeros to a multiple of a page, where a block of so many bytes comes.

        Raises:
            OSError: some of them may be there.
        """
        if size >= LARGE and self.size % PAGE:
            self.append([bytes(-self.size % PAGE)])
            self.commit()

    def commit(self) -> None:
        self.size = os.fstat(self._file).st_size

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if os.fstat(self._file).st_size > self.size:
                os.ftruncate(self._file, self.size)
            if not self.size:
                os.unlink(self.path)
        os.close(self._file)
