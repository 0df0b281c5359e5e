"""Files that are replaced as a whole, so that no reader ever sees a part of one, and files that others wrote.

Imports the standard library only; ``fs`` is an fsspec file system.
"""

from __future__ import annotations

import os
import secrets
import stat
import time
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

STALE = 3600.0
"""Seconds after which a temporary file counts as left behind by a process that was killed."""


def replace_file(path: str | os.PathLike[str], data: bytes | memoryview, private: bool = False) -> None:
    """Write ``data`` into a new file beside ``path``, and rename it to ``path``.

    The new file has a random name and must not exist before, so that neither another process nor a link that somebody
    laid there can get between.  New files that killed processes left behind are removed after an hour.

    Args:
        path: file to write; a link there is replaced, not followed.
        data: contents of the file.
        private: let only the user read the file; otherwise it has the permissions of ordinary files.

    Raises:
        OSError: the folder cannot be written; nothing is left behind then.
    """
    path = Path(path)
    prefix = f".{path.name[:100]}."
    new = path.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(new, flags, 0o600 if private else 0o666)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise
    _remove_stale(path.parent, prefix)


def _remove_stale(folder: Path, prefix: str) -> None:
    """Remove old temporary files of ``replace_file``."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.name.endswith(".tmp"):
                with suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
                        os.unlink(entry.path)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a file for reading that another program may have laid there.

    Raises:
        FileNotFoundError: there is no regular file; a pipe or a device, which could block for ever, counts as none.
        OSError: the file cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(f"{os.fspath(path)} is no regular file")
    return open(descriptor, "rb")


def listed(fs: Any, folder: str) -> list[str]:
    """Return the paths of the files that a folder holds now.

    A missing folder has no files: object storage has no empty folders.
    """
    fs.invalidate_cache(folder)
    try:
        return list(fs.ls(folder, detail=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_file(fs: Any, path: str) -> bytes:
    """Return the contents of a file; a pipe or a device on a local disk counts as missing.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not is_local(fs):
        return bytes(fs.cat_file(path))
    with open_regular(path) as file:
        return file.read()


def write_file(fs: Any, path: str, data: bytes | memoryview) -> None:
    """Write a file in one piece: readers see the old or the new contents, and a link at the path is replaced."""
    if is_local(fs):
        replace_file(path, data)
    else:
        fs.pipe_file(path, bytes(data))


def is_local(fs: Any) -> bool:
    """Return whether a file system is that of this machine."""
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
