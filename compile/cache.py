"""Compiled code beside a checkpoint, for the next process: saved and loaded as one file."""

from __future__ import annotations

import json
import os
import struct
import warnings

import torch

from loopwise.errors import InputError, StateError

_MAGIC = b"loopwise compile cache 1\n"


def _versions() -> dict[str, str]:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"torch": torch.__version__, "device": device}


def save_cache(path: str) -> int:
    """Write everything that this process has compiled into ``path``; returns the file's size in bytes.

    The file starts with a line of magic and a JSON object of versions, which ``load_cache`` compares;
    what follows is ``torch.compiler.save_cache_artifacts()``.

    Raises:
        StateError: nothing was compiled yet.
    """
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        raise StateError(
            "nothing compiled in this process",
            "at least one compiled training step",
            "it was called before the first batch, or the plan is eager",
            "call it after some steps; step.explain() tells what is on",
        )
    head = json.dumps(_versions()).encode()
    data = _MAGIC + struct.pack("<I", len(head)) + head + artifacts[0]
    own = f"{path}.{os.getpid()}"
    with open(own, "wb") as file:
        file.write(data)
    os.replace(own, path)
    return len(data)


def load_cache(path: str) -> bool:
    """Load what ``save_cache`` wrote, before the first batch; ``False``, said as a warning, for other versions.

    Like a pickle the file can run code: load only your own.

    Raises:
        InputError: no file there, or another kind of file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        data = b""
    if not data.startswith(_MAGIC):
        raise InputError(
            f"{path!r} without a compile cache in it",
            "a file that save_cache wrote",
            "a wrong path, or another file",
            "check the path; without a cache everything is compiled anew",
        )
    (length,) = struct.unpack_from("<I", data, len(_MAGIC))
    start = len(_MAGIC) + 4
    theirs, ours = json.loads(data[start : start + length]), _versions()
    if theirs != ours:
        warnings.warn(
            f"loopwise.compile: {path} is of {theirs}, this is {ours}: compiling anew",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return torch.compiler.load_cache_artifacts(data[start + length :]) is not None
