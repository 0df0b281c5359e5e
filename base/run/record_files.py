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


class Lines:
    """File of JSON lines, open for appending.

    On a local disk, each call of ``append`` is one unbuffered write.  On remote storage, each flush writes a new file.
    """

    def __init__(self, run: Run, part: str, name: str) -> None:
        folder = f"{run.path}/{part}"
        run.fs.makedirs(folder, exist_ok=True)
        self._fs, self._stem = run.fs, f"{folder}/{name}.rank{rank()}"
        numbers = [int(m[2]) for f in listed(run.fs, folder) if (m := match(f, name, rank()))]
        self._number = max(numbers, default=-1) + 1
        self._pending: list[bytes] = []
        self._file: int | None = None
        if run.local:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._file = os.open(f"{self._stem}.{self._number}.jsonl", flags, 0o644)

    def append(self, *records: dict[str, Any]) -> None:
        """Commit records by one write on a local disk, or queue them for the next ``flush`` to remote storage."""
        line = b"".join(map(encode, records))
        if self._file is None:
            self._pending.append(line)
            return
        size = os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.ftruncate(self._file, size)  # the next record must not be joined to a torn one
            raise

    def flush(self) -> None:
        """Commit the queued records to remote storage; local records are committed already."""
        if self._pending:
            self._fs.pipe_file(f"{self._stem}.{self._number}.jsonl", b"".join(self._pending))
            self._pending, self._number = [], self._number + 1

    def close(self) -> None:
        """Commit the queued records and close the file."""
        self.flush()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def match(path: str, name: str, of_rank: int | None = None) -> re.Match[str] | None:
    """Match the path of a file of the JSON lines ``name``; the groups are the rank and the file's number."""
    number = r"\d+" if of_rank is None else str(of_rank)
    return re.fullmatch(rf"{re.escape(name)}\.rank({number})\.(\d+)\.jsonl", path.rsplit("/", 1)[-1])
