"""Seconds and bytes of training steps, measured on this device."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.profiler_legacy

Step = Callable[[], Any]
WARM, REPEATS, LEAST = 2, 7, 4


def wait_for(device: torch.device) -> None:
    """Return when everything that was asked of ``device`` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    steps: dict[str, Step],
    device: torch.device,
    repeats: int = REPEATS,
    warm: int = WARM,
    budget: float = float("inf"),
) -> dict[str, list[float]]:
    """Seconds of each step, interleaved (A B C A B C ...), so that a drifting machine drifts for all.

    Once it has taken ``budget`` seconds, ``LEAST`` repeats are enough.
    """
    found: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.perf_counter()
    for number in range(warm + repeats):
        if number >= warm + LEAST and time.perf_counter() - begin > budget:
            break
        for name, step in steps.items():
            wait_for(device)
            start = time.perf_counter()
            step()
            wait_for(device)
            if number >= warm:
                found[name].append(time.perf_counter() - start)
    return found


def peak_bytes(step: Step, device: torch.device) -> int:
    """Most memory that tensors held during ``step``, in bytes above what they held before it."""
    return peak_of(held(step, device))


def peak_of(changes: list[int]) -> int:
    """The most that is held, when memory changes by these bytes one after another."""
    return max(0, *itertools.accumulate(changes)) if changes else 0


def held(step: Step, device: torch.device) -> list[int]:
    """Changes of the memory that tensors hold, in bytes, in the order of their happening during ``step``.

    On the CPU by the allocator's events in a profile (private calls: there is no public timeline of
    a CPU's allocations); buffers that libraries allocate for themselves are not seen there.  On a GPU
    one change, up to the peak, by the allocator's counter.  What was held before must not be freed by ``step``.
    """
    if device.type == "cuda":
        wait_for(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        wait_for(device)
        return [torch.cuda.max_memory_allocated(device) - before]
    private: Any = torch.autograd
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it is the older profiler, which alone writes nothing to the terminal
        config = private.profiler_legacy.profile(profile_memory=True).config()
    private._enable_profiler_legacy(config)
    try:
        step()
    finally:
        records = private._disable_profiler_legacy()
    events = (event for thread in records for event in thread)
    return [event.cpu_memory_usage() for event in events if event.kind() == "memory_alloc"]
