"""Sums over tensors on the CPU in one pass over memory, where there is a C compiler."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
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
    function = kernel()
    if function is None:
        return None
    rows = [row.contiguous() for row in rows]
    places = [[row.data_ptr(), row.numel(), KINDS[row.dtype]] for row in rows]
    given = np.array(places, dtype=np.int64).reshape(-1, 3).T.copy()
    found = np.empty((len(rows), len(COLUMNS)))
    function(*(each.ctypes.data for each in given), len(rows), absolute, found.ctypes.data)
    return found


@functools.cache
def kernel() -> Callable[..., None] | None:
    """The function of ``native.c``, compiled once a process; ``None`` where it cannot be."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        return None
    for flags in FLAGS:
        try:
            return _compiled([*compiler.split(), *flags, "-shared", "-fPIC"])
        except (OSError, subprocess.SubprocessError, AttributeError):
            continue
    return None


def _compiled(command: list[str]) -> Callable[..., None]:
    with tempfile.TemporaryDirectory(prefix="loopwise-") as folder:
        library = f"{folder}/native.so"
        source = str(Path(__file__).with_name("native.c"))
        subprocess.run([*command, "-o", library, source], check=True, capture_output=True, timeout=SECONDS)
        function: Any = ctypes.CDLL(library).measure
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, pointer, pointer, number, number, pointer]
    function.restype = None
    return function  # type: ignore[no-any-return]
