"""Source of Python's standard library as text, split by module into training, validation and test."""

from __future__ import annotations

import sys
import sysconfig
import zlib
from pathlib import Path

import numpy as np

VERSION = f"py{sys.version_info.major}{sys.version_info.minor}{sys.version_info.micro}"
LEFT_OUT = {"site-packages", "test", "tests", "idle_test"}
PARTS = {0: "test", 1: "valid"}


def text(part: str) -> np.ndarray:
    """Return the bytes, uint8, of the modules of ``part`` (``train``, ``valid``, ``test``), one after another.

    A tenth of the modules is for validation and a tenth for the test, by a checksum of their names.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [path.relative_to(root) for path in root.rglob("*.py")]
    chosen = [
        path
        for path in sorted(paths)
        if not LEFT_OUT & set(path.parts)
        and PARTS.get(zlib.crc32(path.as_posix().encode()) % 10, "train") == part
    ]
    return np.frombuffer(b"\n".join((root / path).read_bytes() for path in chosen), dtype=np.uint8)
