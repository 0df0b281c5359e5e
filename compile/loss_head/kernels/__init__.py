"""Triton kernels, each beside the torch operations that it replaces; on a CPU they run under Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os

import torch

_INSTALLED = importlib.util.find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Return whether Triton kernels run on ``device``: on GPUs, and everywhere under ``TRITON_INTERPRET=1``."""
    return _INSTALLED and (device.type == "cuda" or is_interpreted())


def is_interpreted() -> bool:
    """Return whether Triton runs its kernels in NumPy, for tests; that is a thousand times slower."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
