"""The least time of a step on this device: its multiplications at the speed of a large matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .measure import seconds

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the large product: some 30 ms on a CPU core, some on a GPU."""


@dataclass(frozen=True)
class Floor:
    """Matrix products, convolutions and attention of a step."""

    flops: int
    """Floating-point operations, a multiplication and an addition counting as two."""
    rate: float
    """Operations a second that a large product reaches."""

    @property
    def seconds(self) -> float:
        return self.flops / self.rate

    def beside(self, step: float) -> str:
        """In words, beside a step of ``step`` seconds."""
        speed = f"{self.rate / 1e9:,.0f} GFLOP/s"
        share = f"{self.seconds / step:.0%} of forward and backward"
        return f"floor: its matrix products at the speed of a large one ({speed}) take {1e3 * self.seconds:.1f} ms, {share}"


def floor_of(step: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Floor:
    """Count the operations of ``step``, an eager one, and time a large product."""
    with FlopCounterMode(display=False) as counter:
        step()
    side = SIDE.get(device.type, 1024)
    one, other = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    times = seconds({"": lambda: one @ other}, device, repeats=3, warm=1)[""]
    return Floor(counter.get_total_flops(), 2 * side**3 / min(times))
