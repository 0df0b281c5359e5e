"""Files of JSON lines in the folder of a run."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from loopwise.ranks import rank
from loopwise.storage.files import listed
from loopwise.storage.json_lines import encode

if TYPE_CHECKING:
    from .folder import Run


def is_file_at(file: int, path: str) -> bool:
    """Return whether an open file is still the one at a path, and was not deleted or moved."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


class Lines:
    """File of JSON lines, open for appending.

    On a local disk, each call of ``append`` is one unbuffered write.  On remote storage, each flush writes a new file.
    """

    def __init__(self, run: Run, part: str, name: str) -> None:
        folder = f"{run.path}/{part}"
        run.fs.makedirs(folder, exist_ok=True)
        self._run, self._fs, self._stem = run, run.fs, f"{folder}/{name}.rank{rank()}"
        numbers = [int(m[2]) for f in listed(run.fs, folder) if (m := match(f, name, rank()))]
        self._number = max(numbers, default=-1) + 1
        self._pending: list[bytes] = []
        self._file: int | None = None
        self.header: dict[str, Any] | None = None
        """Record that each file has to begin with; the caller appends it to the first file."""
        if run.local:
            self._file = self._new_file()

    def _path(self) -> str:
        return f"{self._stem}.{self._number}.jsonl"

    def _new_file(self) -> int:
        return os.open(self._path(), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def _begin_again(self) -> int:
        """Open a new file in place of one that was deleted, and return it."""
        self._run.restore()
        os.makedirs(os.path.dirname(self._stem), exist_ok=True)
        self._number += 1
        before, self._file = self._file, self._new_file()
        if before is not None:
            os.close(before)
        if self.header is not None:
            os.write(self._file, encode(self.header))
        return self._file

    def append(self, *records: dict[str, Any]) -> None:
        """Commit records by one write on a local disk, or queue them for the next ``flush`` to remote storage."""
        line = b"".join(map(encode, records))
        if self._file is None:
            self._pending.append(line)
            return
        file = self._file if is_file_at(self._file, self._path()) else self._begin_again()
        size = os.fstat(file).st_size
        try:
            while line:
                line = line[os.write(file, line) :]
        except OSError:
            os.ftruncate(file, size)  # the next record must not be joined to a torn one
            raise

    def flush(self) -> None:
        """Commit the queued records to remote storage; local records are committed already."""
        if self._pending:
            self._fs.pipe_file(self._path(), b"".join(self._pending))
            self._pending, self._number = [], self._number + 1

    def close(self) -> None:
        """Commit the queued records and close the file."""
        self.flush()
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def match(path: str, name: str, of_rank: int | None = None) -> re.Match[str] | None:
    """Match the path of a file of the JSON lines ``name``; the groups are the rank and the file's number."""
    number = r"\d+" if of_rank is None else str(of_rank)
    return re.fullmatch(rf"{re.escape(name)}\.rank({number})\.(\d+)\.jsonl", path.rsplit("/", 1)[-1])
