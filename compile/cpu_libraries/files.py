"""Files that are replaced as a whole, so that no reader ever sees a part of one."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` into a new file beside ``path``, and rename it to ``path``.

    The new file has a random name and must not exist before, so that neither another process nor a link that somebody
    laid there can get between.  Unlike a file of ``tempfile``, it has the permissions of ordinary files.

    Raises:
        OSError: the folder cannot be written; nothing is left behind then.
    """
    path = Path(path)
    new = path.with_name(f".{secrets.token_hex(8)}.tmp")
    file = open(new, "xb")  # noqa: SIM115  # a file that was there before must not be removed
    try:
        with file:
            file.write(data)
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise
