"""The batch size that trains the most samples a second within a memory budget, and its learning rate."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch

from loopwise import batch as batches
from loopwise.errors import InputError

from . import options
from .graph.backend import Log
from .search.candidates import TIE
from .search.measure import held, peak_of, seconds
from .step import TrainStep
from .verify.sandbox import shadow, step_of

REPEATS = 5
HEADROOM = 0.9
"""Share of the free memory that is used where no budget is given: fragmentation takes the rest."""


@dataclass(frozen=True)
class Size:
    """One batch size, measured."""

    samples: int
    seconds: float
    """Median of forward and backward."""
    peak: int
    """Bytes held at most, beyond parameters and batch."""
    predicted: int | None
    """The same, as it was predicted from the two sizes before."""
    changes: list[int] = field(default_factory=list, repr=False)
    """Of the memory held, one after another."""

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds


@dataclass(frozen=True)
class Fit:
    """What the batch advisor found; ``str()`` of it is a table."""

    sizes: list[Size]
    best: Size
    limit: int
    """Bytes that forward and backward may hold."""
    given: int
    """Samples of the batch that was given."""
    stopped: str
    """Why no larger size was tried."""
    advice: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{'batch':>8}{'ms':>10}{'samples/s':>12}{'MiB':>10}{'predicted':>11}"]
        for size in self.sizes:
            predicted = "" if size.predicted is None else f"{size.predicted / 2**20:.1f}"
            mark = "  <- best" if size is self.best else ""
            row = f"{size.samples:>8}{1e3 * size.seconds:>10.1f}{size.rate:>12.1f}{size.peak / 2**20:>10.1f}"
            lines.append(f"{row}{predicted:>11}{mark}")
        return "\n".join([*lines, f"stopped: {self.stopped}", *self.advice])


def fit(step: TrainStep, batch: Any, *, memory: float | str | None = None, largest: int | None = None) -> Fit:
    """Try batch sizes from a quarter of the given one on, doubling, by the step's plan.

    Larger batches are made by repeating the samples of ``batch``.  Nothing is trained, and model,
    gradients, buffers and random states stay as they are.

    Args:
        step: the training step.
        batch: a batch of usual size.
        memory: what forward and backward may hold beyond the parameters: bytes, text or fraction as
            for ``TrainStep``; default: the step's own budget, else 90 % of the free memory.
        largest: no more samples than this in a batch.

    Raises:
        InputError: a batch without samples, or not even the smallest size fits.
    """
    given = batches.length(batch)
    if not given:
        raise InputError(
            "a batch without samples", "a batch of usual size", "an empty last batch", "pass the first batch"
        )
    step.prepare(batch)
    limit = _limit(step, memory)
    sizes: list[Size] = []
    samples, stopped = max(min(2, given), given // 4), ""  # one sample may go other ways than many
    while not stopped:
        predicted = _predicted(sizes, samples)
        if largest is not None and samples > largest:
            stopped = f"no more than {largest} samples were asked for"
        elif predicted is not None and predicted > limit:
            stopped = f"{samples} samples would need {predicted / 2**20:,.1f} MiB of {limit / 2**20:,.1f}"
        else:
            stopped = _measure(step, batch, samples, predicted, sizes, limit)
            samples *= 2
    if not sizes:
        raise InputError(
            f"a memory budget of {limit / 2**20:,.1f} MiB",
            f"enough for {max(min(2, given), given // 4)} samples",
            stopped,
            "raise the budget, or pass a smaller batch",
        )
    best = sizes[0]
    for size in sizes[1:]:
        if size.rate > best.rate * (1 + TIE):
            best = size
    return Fit(sizes, best, limit, given, stopped, _advice(step, given, best.samples))


def _limit(step: TrainStep, memory: float | str | None) -> int:
    if memory is not None:
        return options.bytes_of(memory, step.device)
    if step.memory is not None:
        return step.memory
    if step.device.type == "cuda":
        return int(HEADROOM * torch.cuda.mem_get_info(step.device)[0])
    return int(HEADROOM * psutil.virtual_memory().available)


def _predicted(sizes: list[Size], samples: int) -> int | None:
    """Bytes for ``samples``: each allocation grows as it did between the two largest sizes measured.

    Where the peak is in a step is another matter for many samples than for few, so its height is on no
    line.  Steps that allocate more often for a larger batch (chunks) are foretold by the line of their peaks.
    """
    if len(sizes) < 2:
        return None
    low, high = sizes[-2:]
    further = (samples - high.samples) / (high.samples - low.samples)
    if len(low.changes) != len(high.changes):
        return round(high.peak + further * (high.peak - low.peak))
    return peak_of([round(b + further * (b - a)) for a, b in zip(low.changes, high.changes, strict=True)])


def _measure(
    step: TrainStep, batch: Any, samples: int, predicted: int | None, sizes: list[Size], limit: int
) -> str:
    """Measure one size and append it; returns why to stop, if so."""
    assert step.plan is not None
    given = batches.length(batch)
    rows = torch.arange(samples) % given
    try:
        larger = batches.index(batch, rows, given)
        compute = step.make(step.plan, Log())
        with shadow(step.model):
            once = step_of(compute, step.model, larger)
            once()
            times = seconds({"": once}, step.device, REPEATS, warm=1)[""]
            step.model.zero_grad(set_to_none=True)
            changes = held(once, step.device)
    except torch.OutOfMemoryError:
        return f"{samples} samples do not fit into the device's memory"
    peak = peak_of(changes)
    if peak > limit:
        return f"{samples} samples need {peak / 2**20:,.1f} MiB of {limit / 2**20:,.1f}"
    sizes.append(Size(samples, statistics.median(times), peak, predicted, changes))
    flat = len(sizes) > 2 and sizes[-1].rate < sizes[-2].rate * (1 + TIE) < sizes[-3].rate * (1 + TIE) ** 2
    return "two doublings in a row gained nothing" if flat else ""


def _advice(step: TrainStep, given: int, best: int) -> list[str]:
    if best == given:
        return ["the batch size stays as it is"]
    factor = best / given
    if step.optimizer is None:
        return [
            f"{factor:g} times the batch: the learning rate changes by that factor (SGD) or its square root (Adam)"
        ]
    adaptive = "adam" in type(step.optimizer).__name__.lower()
    rule, by = ("square-root", math.sqrt(factor)) if adaptive else ("linear", factor)
    rate = float(step.optimizer.param_groups[0]["lr"])
    found = [
        f"learning rate {rate:g} -> {rate * by:.3g} by the {rule} rule for {type(step.optimizer).__name__}"
        + (", with some hundred steps of warm-up" if factor > 1 else "")
    ]
    if factor < 1 and given % best == 0:
        found.append(f"or accumulate={given // best} with the learning rate as it is")
    return found
