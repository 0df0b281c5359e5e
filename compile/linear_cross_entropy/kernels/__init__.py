"""Triton kernels, each beside the torch operations that it stands for; on a CPU they run under Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os

import torch

_INSTALLED = importlib.util.find_spec("triton") is not None


def runs_kernels(device: torch.device) -> bool:
    """Whether Triton kernels run on ``device``: on GPUs, and anywhere under ``TRITON_INTERPRET=1``."""
    return _INSTALLED and (device.type == "cuda" or interpreted())


def interpreted() -> bool:
    """Whether Triton runs its kernels in NumPy: for tests, a thousand times slower."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
