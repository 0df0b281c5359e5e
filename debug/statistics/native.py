"""What is fastest in C, where there is a compiler: sums over tensors in one pass over memory, and CRC-32."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

COLUMNS = ("count", "sum", "spread", "squares", "min", "max", "zero")
"""What is measured; see `Partials`."""
KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""The dtypes, by their numbers in ``native.c``."""
FLAGS = (("-O3", "-march=native"), ("-O3",))
"""Of the compiler; the second where it does not know this processor."""
SECONDS = 30.0
"""That the compiler may take; it takes 0.3."""
LONG = 2**16
"""Bytes from which on a CRC-32 is worth the call."""
Array = np.ndarray[Any, Any]


def measure(rows: Sequence[torch.Tensor], absolute: bool) -> Array | None:
    """Measure 1-D tensors of `KINDS`, with the interpreter's lock released.

    Sums are of float32 within 4,096 numbers and of float64 beyond, within 1e-6 of the exact ones.  Where one is not
    finite nothing in its row is to be relied on, nor the spread where squares vanish in float32.

    Args:
        absolute: measure the absolute values.

    Returns:
        float64 of shape (rows, columns); of an empty tensor the extremes are infinite.  ``None``: there is
        no compiler.
    """
    library = kernel()
    if library is None:
        return None
    rows = [row.contiguous() for row in rows]
    places = [[row.data_ptr(), row.numel(), KINDS[row.dtype]] for row in rows]
    given = np.array(places, dtype=np.int64).reshape(-1, 3).T.copy()
    found = np.empty((len(rows), len(COLUMNS)))
    library.measure(*(each.ctypes.data for each in given), len(rows), absolute, found.ctypes.data)
    return found


def crc32(data: Any, before: int = 0) -> int:
    """As `zlib.crc32`, at four times its speed on x86, with the interpreter's lock released."""
    library = kernel() if len(data) >= LONG else None
    if library is None or not hasattr(library, "crc32"):
        return zlib.crc32(data, before)
    array = np.frombuffer(data, np.uint8)
    whole = len(array) - len(array) % 16
    return zlib.crc32(data[whole:], library.crc32(array.ctypes.data, whole, before))


@functools.cache
def kernel() -> Any:
    """The library of ``native.c``, compiled once a process; ``None`` where it cannot be."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        return None
    for flags in FLAGS:
        try:
            return _compiled([*compiler.split(), *flags, "-shared", "-fPIC"])
        except (OSError, subprocess.SubprocessError, AttributeError):
            continue
    return None


def _compiled(command: list[str]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="loopwise-") as folder:
        library = f"{folder}/native.so"
        source = str(Path(__file__).with_name("native.c"))
        subprocess.run([*command, "-o", library, source], check=True, capture_output=True, timeout=SECONDS)
        found = ctypes.CDLL(library)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    found.measure.argtypes = [pointer, pointer, pointer, number, number, pointer]
    found.measure.restype = None
    if hasattr(found, "crc32"):  # not on every processor
        found.crc32.argtypes = [pointer, number, ctypes.c_uint32]
        found.crc32.restype = ctypes.c_uint32
    return found
