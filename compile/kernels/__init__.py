"""Triton kernels, each beside the torch operations that it stands for; on a CPU they run under Triton's interpreter."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

OLDEST = (7, 0)
"""Compute capability from which on Triton compiles for a GPU."""


@torch.compiler.assume_constant_result
def runs_kernels(device: torch.device) -> bool:
    """Whether Triton kernels run on ``device``: on GPUs, and anywhere under ``TRITON_INTERPRET=1``."""
    return _installed() and ((device.type == "cuda" and _capability(device) >= OLDEST) or interpreted())


def interpreted() -> bool:
    """Whether Triton runs its kernels in NumPy: for tests, a thousand times slower."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
