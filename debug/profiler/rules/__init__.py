"""Rules over what the profiler records: what training waits for, and what is usually done about it."""

from __future__ import annotations

from ...rules.finding import Rule, named
from . import (
    batch_size,
    cpu_bottleneck,
    dataloader,
    gpu_memory_increase,
    io_bottleneck,
    load_balancing,
    low_gpu_utilization,
    max_initialization_time,
    step_outlier,
)

PROFILE_RULES: dict[str, Rule] = named(
    max_initialization_time,
    dataloader,
    io_bottleneck,
    step_outlier,
    cpu_bottleneck,
    low_gpu_utilization,
    batch_size,
    gpu_memory_increase,
    load_balancing,
)
"""Name -> rule; its ``check`` is called with a ``Series``."""
