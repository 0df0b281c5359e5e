"""Storage of a study: Optuna's journal, with a lock that a killed process leaves open and lines that are whole."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage


class FileLock:
    """Lock of a journal by ``flock``, which the kernel releases when its holder is killed.

    Optuna's own lock is a file that stays, so that the next process waits for half a minute.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}.lock"
        self._file: int | None = None

    def acquire(self) -> bool:
        self._file = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


def mend(path: Path) -> int:
    """Cut a journal back to its last whole line, under its lock; return the number of bytes that were cut."""
    if not path.exists():
        return 0
    lock = FileLock(str(path))
    lock.acquire()
    try:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        return len(data) - whole
    finally:
        lock.release()


def open_storage(journal: Path) -> BaseStorage:
    """Return the storage of a journal file, which is mended before; it is made if it does not exist."""
    mend(journal)
    lock: Any = FileLock(str(journal))  # the class of Optuna's locks is private
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=lock))
