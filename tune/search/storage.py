"""Storage of a study: a database, or Optuna's journal, with a lock that a killed process leaves open and lines that are whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial

from loopwise.errors import StateError
from loopwise.programs.locks import lock, locked


class FileLock:
    """Lock of a journal by ``flock``, which the kernel releases when its holder is killed.

    Optuna's own lock is a file that stays, so that the next process waits for half a minute.
    """

    def __init__(self, path: str) -> None:
        self._path = f"{path}.lock"
        self._file: int | None = None

    def acquire(self) -> bool:
        self._file = lock(self._path, wait=True)
        return True

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


def mend(path: Path) -> int:
    """Cut a journal back to its last whole line, under its lock; return the number of bytes that were cut."""
    if not path.exists():
        return 0
    with locked(f"{path}.lock", wait=True):
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        return len(data) - whole


@contextlib.contextmanager
def storage_errors(database: str | None) -> Iterator[None]:
    """Raise ``StateError`` if the database fails while a job runs; ``None``: the job has no database."""
    try:
        yield
    except Exception as error:
        if database is None or not type(error).__module__.startswith(("optuna", "sqlalchemy")):
            raise
        from .database import failed

        raise failed(error, database) from None


def close_storage(storage: Any) -> None:
    """Close the connections of a database; a journal has none."""
    if not isinstance(storage, JournalStorage):
        storage.remove_session()
        storage.engine.dispose()


def validate_holds(trials: Sequence[FrozenTrial], recorded: Iterable[int]) -> None:
    """Raise an error if a study lacks trials that the run folder records.

    Raises:
        StateError: it does.
    """
    last = max(recorded, default=-1)
    if last >= len(trials):
        raise StateError(
            f"a study of {len(trials)} trials, and a record of trial {last}",
            "the study with which the job was begun",
            "its database or its journal was removed or replaced",
            "restore it, or begin a job in another folder",
        )


def open_storage(database: str | None, journal: Path) -> BaseStorage:
    """Return the storage of a database by its URL, or of a journal file, which is mended before or made."""
    if database is not None:
        from .database import open_database

        return open_database(database)
    mend(journal)
    own: Any = FileLock(str(journal))  # the class of Optuna's locks is private
    return JournalStorage(JournalFileBackend(str(journal), lock_obj=own))
