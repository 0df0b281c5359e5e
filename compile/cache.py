"""File of compiled code beside a checkpoint, for the next process.

Format of the file that ``save_cache`` writes, version 2: a line with the name and version of the format; the SHA-256
of all that follows; the length of the next item as a little-endian unsigned integer of 4 bytes; a JSON object; and the
items that the object lists.  The object has the keys ``made_for`` (versions, device, compiler and processor, which
``load_cache`` compares), ``artifacts`` (the number of bytes of ``torch.compiler.save_cache_artifacts()``, the first
item) and ``libraries`` (pairs of the name and the number of bytes of Inductor's compiled CPU code, the other items).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

from loopwise.errors import InputError, StateError
from loopwise.storage.files import replace_file
from loopwise.storage.json_lines import DAMAGED, count
from loopwise.warnings import warn

from .cpu_libraries.torch_internals import compiled_libraries, cpp_compiler, inductor_folder

_MAGIC = b"loopwise compile cache 2\n"
_LIBRARY = re.compile(r"[a-z0-9]{8,128}(\.main)?\.so(\.load_ok)?")
"""Names of Inductor's files; none leads out of the folder."""


def save_cache(path: str | os.PathLike[str]) -> int:
    """Write everything that this process has compiled into ``path`` and return the file's size in bytes.

    The file holds graphs, kernels for GPUs, and the machine code of kernels for CPUs.

    Args:
        path: the file to write.

    Raises:
        StateError: nothing was compiled yet.
        InputError: the file cannot be written.
    """
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is None:
        raise StateError(
            "nothing compiled in this process",
            "at least one compiled training step",
            "save_cache was called before the first batch, or the plan is eager",
            "call save_cache after some steps; step.explain() shows the plan",
        )
    libraries = {os.path.basename(name): Path(name).read_bytes() for name in compiled_libraries()}
    head = {
        "made_for": _made_for(bool(libraries)),
        "artifacts": len(artifacts[0]),
        "libraries": [(name, len(code)) for name, code in libraries.items()],
    }
    text = json.dumps(head).encode()
    body = b"".join([len(text).to_bytes(4, "little"), text, artifacts[0], *libraries.values()])
    data = _MAGIC + hashlib.sha256(body).digest() + body
    try:
        replace_file(path, data)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{_shown(path)}, which cannot be written: {getattr(error, 'strerror', None) or error}",
            "a file in a folder that exists",
            "a folder that is missing or read-only, or that has the name of the file",
            "make the folder, or correct the path",
        ) from error
    return len(data)


def load_cache(path: str | os.PathLike[str]) -> bool:
    """Load the compiled code that ``save_cache`` wrote; call it before the first batch.

    Like a pickle, the file can run code: load only your own.

    Args:
        path: the file to read.

    Returns:
        Whether the code was loaded; ``False``, with a ``LoopwiseWarning``, if it was compiled for other versions or
        another processor.

    Raises:
        InputError: there is no file, or it is damaged or of another kind, or its code cannot be written into the
            folder of Inductor's cache.
    """
    body = _body(path)
    length = int.from_bytes(body[:4], "little")
    try:
        head = json.loads(body[4 : 4 + length])
        made_for, names = head["made_for"], [str(name) for name, _ in head["libraries"]]
        sizes = [count(size) for size in (head["artifacts"], *(size for _, size in head["libraries"]))]
        if 4 + length + sum(sizes) != len(body) or not all(map(_LIBRARY.fullmatch, names)):
            raise ValueError
        reasons = _differences(made_for, _made_for(bool(names)))
    except DAMAGED as error:
        raise _no_cache(path, "another program wrote it, or another version of Loopwise") from error
    if reasons:
        text = f"{os.fspath(path)} was compiled for {'; '.join(reasons)}: everything is compiled anew"
        warn(f"loopwise.compile: {text}", stacklevel=2)
        return False
    start = 4 + length
    artifacts, *codes = (body[(start := start + size) - size : start] for size in sizes)
    try:
        _load_artifacts(path, artifacts)
        for name, code in zip(names, codes, strict=True):
            _unpack(name, code)
    except OSError as error:
        raise InputError(
            f"the folder {os.environ.get('TORCHINDUCTOR_CACHE_DIR')!r}, which cannot be written: {error}",
            "a folder for Inductor's compiled code",
            "a read-only folder, or a full disk",
            "set the environment variable TORCHINDUCTOR_CACHE_DIR to another folder",
        ) from error
    return True


def _body(path: str | os.PathLike[str]) -> bytes:
    """Return what follows the checksum of a file, after comparing it with the checksum."""
    try:
        with open(path, "rb") as file:
            known = file.read(len(_MAGIC)) == _MAGIC
            checksum = file.read(hashlib.sha256().digest_size) if known else b""
            body = file.read() if known else b""
    except (OSError, TypeError, ValueError) as error:
        raise _no_cache(path, f"a wrong path: {getattr(error, 'strerror', None) or error}") from error
    if not known:
        raise _no_cache(path, "a wrong path, or another file")
    if hashlib.sha256(body).digest() != checksum:
        raise _no_cache(path, "the file was cut or changed, for instance by a copy that broke off")
    return body


def _load_artifacts(path: Any, artifacts: bytes) -> None:
    """Load what ``torch.compiler.save_cache_artifacts`` returned; other bytes are an ``InputError``."""
    try:
        loaded = torch.compiler.load_cache_artifacts(artifacts)
    except OSError:
        raise
    except Exception as error:  # PyTorch raises what its reader of bytes happens to raise
        raise _no_cache(path, f"another program wrote it: {error!r:.200}") from error
    if loaded is None:
        raise _no_cache(path, "another program wrote it")


def _no_cache(path: Any, cause: str) -> InputError:
    """Make the error for a file that holds nothing to load."""
    return InputError(
        f"{_shown(path)} without a compile cache in it",
        "a file that save_cache wrote",
        cause,
        "correct the path, or leave load_cache out: everything is then compiled anew",
    )


def _shown(path: Any) -> str:
    """Return the text of a path, or of what was passed in its place."""
    return repr(os.fspath(path) if isinstance(path, os.PathLike) else path)


def _unpack(name: str, code: bytes) -> None:
    """Write a library to the place where Inductor looks for it, unless it is there."""
    path = Path(inductor_folder()) / name[1:3] / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():  # it may be in use
        replace_file(path, code)


def _made_for(libraries: bool) -> dict[str, Any]:
    """Return everything that compiled code depends on; compiler and processor only matter to CPU code."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    made_for = {"torch": torch.__version__, "python": sys.implementation.cache_tag, "device": device}
    if not libraries:
        return made_for
    capability = torch.backends.cpu.get_cpu_capability()
    return made_for | {"compiler": cpp_compiler(), "vectors": capability, "instructions": _instructions()}


def _instructions() -> list[str]:
    """Return the names of the processor's instruction sets, or those of the processor if the system lists none.

    Inductor compiles for the machine's own processor (``-march=native``), which the names of its files do not say.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return sorted(set(flags[1].split())) if flags else [platform.machine(), platform.processor()]


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """Return in words why code that was compiled for ``theirs`` cannot be used here."""
    reasons = []
    if missing := sorted(set(theirs.get("instructions", ())) - set(ours.get("instructions", ()))):
        reasons.append(f"a processor with {', '.join(missing)}, which this one lacks")
    for name, value in ours.items():
        if name != "instructions" and theirs[name] != value:
            short = name != "compiler"  # its text has many lines
            reasons.append(
                f"{name} {theirs[name]}, this process has {value}" if short else "another C++ compiler"
            )
    return reasons
