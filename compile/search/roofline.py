"""Roofline of a step: the least time that its multiplications take at the speed of a large matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .measure import seconds

SIDE = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the large product; it takes about 30 ms on a CPU core."""


@dataclass(frozen=True)
class Roofline:
    """Matrix products, convolutions and attention of a step, and the speed of the device."""

    flops: int
    """Floating-point operations; a multiplication and an addition count as two."""
    rate: float
    """Operations a second that a large product reaches."""

    @property
    def seconds(self) -> float:
        """Least seconds of a step."""
        return self.flops / self.rate

    def compared_with(self, step: float) -> str:
        """Return a line that compares the roofline with a step of ``step`` seconds."""
        speed = f"{self.rate / 1e9:,.0f} GFLOP/s"
        share = f"{self.seconds / step:.0%} of forward and backward"
        return f"roofline: at the speed of a large matrix product ({speed}) the step's products take {1e3 * self.seconds:.1f} ms, {share}"


def measure_roofline(step: Callable[[], Any], device: torch.device, dtype: torch.dtype) -> Roofline:
    """Count the operations of an eager step, and time a large product."""
    from torch.utils.flop_counter import FlopCounterMode  # it imports much

    with FlopCounterMode(display=False) as counter:
        step()
    side = SIDE.get(device.type, 1024)
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    times = seconds({"": lambda: left @ right}, device, repeats=3, warm=1)[""]
    return Roofline(counter.get_total_flops(), 2 * side**3 / min(times))
