"""Lock files, for one process at a time.  Standard library only.

The locks are those of ``flock``, which the kernel releases when their holder ends, also by ``kill -9``.  A child that inherits
the file descriptor holds the lock, too, until both have ended or closed it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator


def lock(path: str | os.PathLike[str], *, shared: bool = False, wait: bool = False) -> int | None:
    """Lock a file, which is made if it does not exist, and stays: removed, it would let two processes lock files of one name.

    Args:
        path: the file.
        shared: let other processes have shared locks, too.
        wait: wait until others have released theirs.

    Returns:
        A file descriptor; closing it releases the lock.  ``None``: another process holds the lock.
    """
    file = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        os.close(file)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return file


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: bool = False) -> Iterator[bool]:
    """Lock a file for a ``with`` block, whose value says whether it is locked: without ``wait``, others may hold the lock."""
    file = lock(path, wait=wait)
    try:
        yield file is not None
    finally:
        if file is not None:
            os.close(file)
