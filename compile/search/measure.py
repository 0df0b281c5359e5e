"""Measurement of seconds and bytes of training steps on this device."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection
from typing import Any

import torch

from ..torch_internals import allocations

Step = Callable[[], Any]
Steps = dict[str, Step]
WARM_UP, REPEATS, LEAST, FEWEST = 2, 7, 4, 2
"""Repeats before the clock counts; repeats that are timed; timed repeats that are enough once the budget is spent, and
once it is spent twice or a step is clearly slower than another."""


def median(values: Collection[float]) -> float:
    """Return the median.  Importing ``statistics`` would take longer than importing all of compile."""
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def wait_for(device: torch.device) -> None:
    """Wait until ``device`` has done all work that was submitted to it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    steps: Steps,
    device: torch.device,
    repeats: int = REPEATS,
    warm: int = WARM_UP,
    budget: float = math.inf,
    drop: float = math.inf,
) -> dict[str, list[float]]:
    """Time several steps in turns (A B C A B C ...), so that a machine that slows down does so for all of them.

    Args:
        steps: name -> step.
        device: the device that the steps run on.
        repeats: timed repeats.
        warm: repeats before these.
        budget: seconds after which ``LEAST`` timed repeats are enough, and ``FEWEST`` after twice as many.
        drop: a step whose ``FEWEST`` repeats all take more than this many times all those of another is timed no more.

    Returns:
        Name -> seconds of each timed repeat.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    begin, running = time.perf_counter(), dict(steps)
    for number in range(warm + repeats):
        spent = time.perf_counter() - begin
        if (number >= warm + LEAST and spent > budget) or (number >= warm + FEWEST and spent > 2 * budget):
            break
        if number == warm + FEWEST:
            limit = drop * min(max(times[name]) for name in steps)
            running = {name: step for name, step in steps.items() if min(times[name]) <= limit}
        for name, step in running.items():
            wait_for(device)
            start = time.perf_counter()
            step()
            wait_for(device)
            if number >= warm:
                times[name].append(time.perf_counter() - start)
    return times


def peak_bytes(step: Step, device: torch.device) -> int:
    """Return the peak of the bytes that tensors held during ``step``, minus the bytes that they held before."""
    return peak_of(memory_changes(step, device))


def peak_of(changes: list[int]) -> int:
    """Return the largest sum of consecutive changes from the first one on, in bytes; at least 0."""
    return max(0, *itertools.accumulate(changes)) if changes else 0


def memory_changes(step: Step, device: torch.device) -> list[int]:
    """Return the changes of the memory that tensors hold during ``step``, in bytes, in their order.

    On the CPU these are the allocator's events in a profile; buffers that libraries allocate for themselves are not
    among them.  On a GPU there is one change, up to the peak, by the allocator's counter, which is reset.  ``step`` must not free
    tensors that existed before.
    """
    if device.type != "cuda":
        return allocations(step)
    wait_for(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    wait_for(device)
    return [torch.cuda.max_memory_allocated(device) - before]
