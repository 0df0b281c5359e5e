"""Files that are appended to, without anything torn in the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

LARGE = 2**20
"""Bytes of a write from which on the page cache is asked to let go of what is written, rather than grow."""


class Growing:
    """A new file that is appended to; what is not committed is taken back when it is closed.

    Args:
        path: must not be there yet.
    """

    def __init__(self, path: str) -> None:
        self.path, self.size = path, 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def append(self, chunks: Sequence[Any]) -> None:
        """Write buffers of bytes at the end.

        Raises:
            OSError: some of them may be there.
        """
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            if len(chunk) >= LARGE and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        self.size = os.fstat(self._file).st_size

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if os.fstat(self._file).st_size > self.size:
                os.ftruncate(self._file, self.size)
            if not self.size:
                os.unlink(self.path)
        os.close(self._file)
