"""Roofline of a step: the least time that its multiplications take at the speed of a large matrix product."""

from __future__ import annotations

from typing import NamedTuple

import torch

from loopwise.devices import native_dtype

from ..spec import StepSpec
from ..verify.sandbox import Sandbox
from .measure import seconds

SIDE = {"cpu": 1024, "cuda": 8192}
"""Number of rows and of columns of the large product, which takes about 30 ms on a CPU core."""


class Roofline(NamedTuple):
    """Matrix products, convolutions and attention of a step, and the speed of the device."""

    flops: int
    """Floating-point operations; a multiplication and an addition count as two."""
    rate: float
    """Operations a second that a large product reaches."""


def measure_roofline(spec: StepSpec, sandbox: Sandbox) -> Roofline | None:
    """Count the operations of an eager step and time a large product; ``None`` if the operations cannot be counted."""
    from torch.utils.flop_counter import FlopCounterMode  # it imports much

    device, side = spec.device, SIDE.get(spec.device.type, 1024)
    dtype = native_dtype(device) if spec.precision == "mixed" else torch.float32
    try:
        with sandbox:
            with FlopCounterMode(display=False) as counter:
                sandbox.training_pass(spec.eager)()
            left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
            times = seconds({"": lambda: left @ right}, device, repeats=3, warm=1)[""]
    except Exception:  # a line of explain() is no reason to stop
        return None
    return Roofline(counter.get_total_flops(), 2 * side**3 / min(times))
