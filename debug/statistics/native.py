"""Functions in C that are compiled on first use: sums over tensors in one pass over memory, a test for finite numbers, CRC-32."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

COLUMNS = ("count", "sum", "spread", "squares", "min", "max", "zero")
"""Sums that `measure` returns; `Partials` explains them."""
KINDS = {torch.float32: 0, torch.bfloat16: 1}
"""Key: dtype that `measure` takes.  Value: its number in ``native.c``."""
FLOATS = KINDS | {torch.float16: 2, torch.float64: 3}
"""Key: dtype that `all_finite` takes.  Value: its number in ``native.c``."""
FLAGS = (("-O3", "-march=native"), ("-O3",))
"""Flags of the compiler; the second tuple is tried if it does not know this processor."""
SECONDS = 30.0
"""Time limit of the compiler, which takes 0.3 s."""
LONG = 2**16
"""Bytes from which on the CRC-32 in C is faster than zlib's."""
Array = np.ndarray[Any, Any]


def measure(rows: Sequence[torch.Tensor], absolute: bool) -> Array | None:
    """Measure 1-D tensors of `KINDS`, with the interpreter's lock released.

    Groups of 4,096 numbers are summed in float32 and the groups in float64.  The relative error is at most 1e-6.
    If a sum is not finite, its whole row is unreliable; if squares underflow in float32, its `spread` is unreliable.

    Args:
        rows: the tensors.
        absolute: measure the absolute values.

    Returns:
        float64 of shape (rows, `COLUMNS`); the extremes of an empty tensor are infinite.  ``None`` if there is no
        compiler.
    """
    library = kernel()
    if library is None:
        return None
    rows = [row.contiguous() for row in rows]
    described = [[row.data_ptr(), row.numel(), KINDS[row.dtype]] for row in rows]
    arguments = np.array(described, dtype=np.int64).reshape(-1, 3).T.copy()
    sums = np.empty((len(rows), len(COLUMNS)))
    library.measure(*(column.ctypes.data for column in arguments), len(rows), absolute, sums.ctypes.data)
    return sums


def all_finite(areas: Sequence[int]) -> bool:
    """Return whether all numbers in some areas of memory are finite, with the interpreter's lock released.

    ``kernel`` must have returned a library.

    Args:
        areas: five numbers for each area: its address; its number of rows; the distance of the rows' beginnings and the
            length of a row, in elements; and its dtype in `FLOATS`.
    """
    numbers = array("q", areas)
    return bool(kernel().all_finite(numbers.buffer_info()[0], len(areas) // 5))


def crc32(data: Any, before: int = 0) -> int:
    """Return the CRC-32 as `zlib.crc32` does, at four times its speed on x86, with the interpreter's lock released."""
    library = kernel() if len(data) >= LONG else None
    if library is None or not hasattr(library, "crc32"):
        return zlib.crc32(data, before)
    array = np.frombuffer(data, np.uint8)
    whole = len(array) - len(array) % 16
    return zlib.crc32(data[whole:], library.crc32(array.ctypes.data, whole, before))


@functools.cache
def kernel() -> Any:
    """Return the library of ``native.c``, compiled once a process; ``None`` if that fails."""
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
        loaded = ctypes.CDLL(library)
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    loaded.measure.argtypes = [pointer, pointer, pointer, number, number, pointer]
    loaded.measure.restype = None
    loaded.all_finite.argtypes, loaded.all_finite.restype = [pointer, number], number
    if hasattr(loaded, "crc32"):  # not on every processor
        loaded.crc32.argtypes = [pointer, number, ctypes.c_uint32]
        loaded.crc32.restype = ctypes.c_uint32
    return loaded
