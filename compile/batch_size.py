"""Batch size that trains the most samples a second within a memory budget, and its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from loopwise import batch as batches
from loopwise import validate
from loopwise.errors import InputError

from . import options
from .graph.backend import Log
from .search.candidates import TIE
from .search.measure import median, memory_changes, peak_of, seconds
from .search.variants import variant
from .step import TrainStep
from .verify.sandbox import Sandbox

REPEATS = 5
HEADROOM = 0.9
"""Share of the free memory that is the default budget: fragmentation takes the rest."""


@dataclass(frozen=True)
class Size:
    """Measurement of one batch size."""

    samples: int
    seconds: float
    """Median seconds of forward and backward."""
    peak: int
    """Largest number of bytes that were held besides parameters and batch."""
    predicted: int | None
    """The same bytes, predicted from the two sizes before."""
    changes: list[int] = field(default_factory=list, repr=False)
    """Changes of the memory held, in bytes, in their order."""

    @property
    def rate(self) -> float:
        """Samples a second."""
        return self.samples / self.seconds


@dataclass(frozen=True)
class Fit:
    """Measured batch sizes and the best of them; ``print`` shows them as a table."""

    sizes: list[Size]
    best: Size
    limit: int
    """Bytes that forward and backward may hold."""
    given: int
    """Number of samples of the batch that was passed."""
    stopped: str
    """Reason why no larger size was tried."""
    advice: list[str] = field(default_factory=list)
    """Lines about the learning rate of the best size."""

    def __str__(self) -> str:
        lines = [f"{'batch':>8}{'ms':>10}{'samples/s':>12}{'MiB':>10}{'predicted':>11}"]
        for size in self.sizes:
            predicted = "" if size.predicted is None else f"{size.predicted / 2**20:.1f}"
            mark = "  <- best" if size is self.best else ""
            row = f"{size.samples:>8}{1e3 * size.seconds:>10.1f}{size.rate:>12.1f}{size.peak / 2**20:>10.1f}"
            lines.append(f"{row}{predicted:>11}{mark}")
        return "\n".join([*lines, f"stopped: {self.stopped}", *self.advice])


def fit(step: TrainStep, batch: Any, *, memory: float | str | None = None, largest: int | None = None) -> Fit:
    """Measure batch sizes by the step's plan, from a quarter of the size of ``batch`` on, doubling.

    Larger batches are made by repeating the samples of ``batch``.  Nothing is trained, and model,
    gradients, buffers and random states stay as they are.

    Args:
        step: the training step.
        batch: a batch of usual size.
        memory: memory that forward and backward may hold beyond the parameters: bytes, text or fraction as
            for ``TrainStep``; default: the step's own budget, else 90 % of the free memory.
        largest: most samples in a batch.

    Returns:
        The measurements, the best size, and advice on the learning rate.

    Raises:
        InputError: no training step, a batch without samples, or not even the smallest size fits.
    """
    cause, fix = "the model was passed", "pass TrainStep(model, loss)"
    validate.instance("step", step, TrainStep, "a TrainStep", fix, cause)
    if largest is not None:
        validate.whole_number("largest", largest, 1, "samples", example=1024)
    batch_size = batches.length(batch)
    if not batch_size:
        raise InputError(
            "a batch without samples", "a batch of usual size", "an empty last batch", "pass the first batch"
        )
    step.prepare(batch)
    limit = _limit(step, memory)
    sizes: list[Size] = []
    smallest = max(
        min(2, batch_size), batch_size // 4
    )  # libraries may compute one sample in another way than many
    samples, stopped = smallest, ""
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
            f"enough for {smallest} samples",
            stopped,
            "raise the budget, or pass a smaller batch",
        )
    best = sizes[0]
    for size in sizes[1:]:
        if size.rate > best.rate * (1 + TIE):
            best = size
    return Fit(sizes, best, limit, batch_size, stopped, _advice(step, batch_size, best.samples))


def _limit(step: TrainStep, memory: float | str | None) -> int:
    """Return the bytes that forward and backward may hold."""
    device = step.spec.device
    if memory is not None:
        return options.bytes_of(memory, device)
    if step.spec.memory is not None:
        return int(step.spec.memory)
    if device.type == "cuda":
        return int(HEADROOM * torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(HEADROOM * psutil.virtual_memory().available)


def _predicted(sizes: list[Size], samples: int) -> int | None:
    """Predict the peak of ``samples`` in bytes: each allocation grows as it did between the two largest sizes measured.

    The peak is at another point of the step for many samples than for few, so the peaks alone lie on no line.
    If a larger batch allocates more often (in chunks), the line through the two peaks is the prediction.
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
    """Measure one size and append it to ``sizes``; return the reason to stop, or an empty text."""
    assert step.plan is not None
    model, device = step.spec.model, step.spec.device
    batch_size = batches.length(batch)
    try:
        larger = batches.index(batch, torch.arange(samples) % batch_size, batch_size)
        with Sandbox(step.spec, larger, changing=step.changing) as sandbox:
            run = sandbox.training_pass(variant(step.spec, step.plan, Log()))
            run()
            times = seconds({"": run}, device, REPEATS, warm=1)[""]
            model.zero_grad(set_to_none=True)
            changes = memory_changes(run, device)
    except torch.OutOfMemoryError:
        return f"{samples} samples do not fit into the device's memory"
    peak = peak_of(changes)
    if peak > limit:
        return f"{samples} samples need {peak / 2**20:,.1f} MiB of {limit / 2**20:,.1f}"
    sizes.append(Size(samples, median(times), peak, predicted, changes))
    flat = len(sizes) > 2 and sizes[-1].rate < sizes[-2].rate * (1 + TIE) < sizes[-3].rate * (1 + TIE) ** 2
    return "two doublings in a row gained nothing" if flat else ""


def _advice(step: TrainStep, batch_size: int, best: int) -> list[str]:
    """Return lines about the learning rate of a batch of ``best`` samples instead of ``batch_size``."""
    if best == batch_size:
        return ["the batch size stays as it is"]
    factor, optimizer = best / batch_size, step.spec.optimizer
    if optimizer is None:
        rules = "the learning rate changes by that factor (SGD) or its square root (Adam)"
        return [f"{factor:g} times the batch: {rules}"]
    name = type(optimizer).__name__
    rule, by = ("square-root", math.sqrt(factor)) if "adam" in name.lower() else ("linear", factor)
    rate = float(optimizer.param_groups[0]["lr"])
    warm_up = ", with some hundred steps of warm-up" if factor > 1 else ""
    lines = [f"learning rate {rate:g} -> {rate * by:.3g} by the {rule} rule for {name}{warm_up}"]
    if factor < 1 and batch_size % best == 0:
        lines.append(f"or accumulate={batch_size // best} with the learning rate as it is")
    return lines
