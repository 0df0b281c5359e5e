"""File of compiled code beside a checkpoint, for the next process.

Format of the file that ``save_cache`` writes, version 1: a line with the name and version of the format; the length of
the next item as a little-endian unsigned integer of 4 bytes; a JSON object with the keys ``torch`` (its version) and
``device`` (its name), which ``load_cache`` compares; and the bytes of ``torch.compiler.save_cache_artifacts()``.
"""

from __future__ import annotations

import json
import os
import struct

import torch

from loopwise.errors import InputError, StateError
from loopwise.warnings import warn

_MAGIC = b"loopwise compile cache 1\n"


def _versions() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"torch": torch.__version__, "device": device}


def save_cache(path: str | os.PathLike[str]) -> int:
    """Write everything that this process has compiled into ``path`` and return the file's size in bytes.

    The file consists of a magic line, a JSON object of versions, which ``load_cache`` compares, and the bytes of
    ``torch.compiler.save_cache_artifacts()``.

    Args:
        path: the file to write.

    Raises:
        StateError: nothing was compiled yet.
    """
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        raise StateError(
            "nothing compiled in this process",
            "at least one compiled training step",
            "save_cache was called before the first batch, or the plan is eager",
            "call save_cache after some steps; step.explain() shows the plan",
        )
    head = json.dumps(_versions()).encode()
    data = _MAGIC + struct.pack("<I", len(head)) + head + artifacts[0]
    own = f"{os.fspath(path)}.{os.getpid()}"
    with open(own, "wb") as file:
        file.write(data)
    os.replace(own, path)
    return len(data)


def load_cache(path: str | os.PathLike[str]) -> bool:
    """Load the compiled code that ``save_cache`` wrote; call it before the first batch.

    Like a pickle, the file can run code: load only your own.

    Args:
        path: the file to read.

    Returns:
        Whether the code was loaded; ``False``, with a ``LoopwiseWarning``, if it was compiled for other versions.

    Raises:
        InputError: there is no file, or it is of another kind.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        data = b""
    if not data.startswith(_MAGIC):
        raise InputError(
            f"{os.fspath(path)!r} without a compile cache in it",
            "a file that save_cache wrote",
            "a wrong path, or another file",
            "correct the path, or leave load_cache out: everything is then compiled anew",
        )
    (length,) = struct.unpack_from("<I", data, len(_MAGIC))
    start = len(_MAGIC) + 4
    theirs, ours = json.loads(data[start : start + length]), _versions()
    if theirs != ours:
        text = f"{os.fspath(path)} was compiled for {theirs}, this process has {ours}: everything is compiled anew"
        warn(f"loopwise.compile: {text}", stacklevel=2)
        return False
    return torch.compiler.load_cache_artifacts(data[start + length :]) is not None
