"""Plans tried on one batch: compiled, checked against the eager step, timed beside each other."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from loopwise.ranks import anywhere

from ..graph.backend import Log, first_line
from ..graph.diagnostics import collect_graph_breaks
from ..plan import Plan
from ..verify.numerics import Difference, Reference, check
from ..verify.sandbox import Compute, observe, restored, shadow, step_of
from .measure import REPEATS, peak_bytes, seconds

TIE = 0.02
"""A plan must be faster than a simpler one by this share of its time: less is noise."""
BUDGET = 10.0
"""Seconds of timing after which fewer repeats are enough."""
Make = Callable[[Plan, Log], Compute]
"""From a plan to the computation of a batch's loss by it."""


@dataclass
class Trial:
    """What trying one plan found."""

    plan: Plan
    log: Log = field(default_factory=Log)
    compute: Compute | None = None
    """``None``: refused."""
    refused: str = ""
    difference: Difference | None = None
    compile_seconds: float = 0.0
    """Of the first pass, which captures and compiles, beyond a later one."""
    times: list[float] = field(default_factory=list)
    """Seconds of forward and backward."""
    peak: int = 0
    """Bytes that forward and backward hold at most, beyond parameters and batch."""

    @property
    def seconds(self) -> float:
        return statistics.median(self.times) if self.times else float("inf")


@contextlib.contextmanager
def laid_out(model: nn.Module, layout: str) -> Iterator[None]:
    """The model's convolution weights in ``layout``; their layouts are restored on leaving."""
    with restored(model.parameters()):
        lay_out(model, layout)
        yield


def lay_out(model: nn.Module, layout: str) -> None:
    """Bring the model's convolution weights into ``layout``, in place."""
    for parameter in model.parameters():
        if layout == "channels_last" and parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def has_images(model: nn.Module) -> bool:
    """Whether there are convolutions over images whose weights are not in channels_last layout yet."""
    found = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    return any(not w.is_contiguous(memory_format=torch.channels_last) for w in found)


def attempt(plan: Plan, make: Make, model: nn.Module, batch: Any, expected: Reference) -> Trial:
    """Compile by ``plan`` and compare one pass with the eager one; refused where any rank refuses it."""
    trial = Trial(plan)
    compute = make(plan, trial.log)
    _try(trial, compute, model, batch, expected)
    if anywhere(bool(trial.refused)):
        trial.refused = trial.refused or "refused on another rank"
    else:
        trial.compute = compute
    return trial


def _try(trial: Trial, compute: Compute, model: nn.Module, batch: Any, expected: Reference) -> None:
    """One pass, compared; what is wrong is noted in the trial."""
    with laid_out(model, trial.plan.layout):
        start = time.perf_counter()
        try:
            with collect_graph_breaks(trial.log.breaks):
                found = observe(compute, model, batch)
        except Exception as error:
            trial.refused = first_line(error)
            return
        trial.compile_seconds = time.perf_counter() - start
    if trial.log.failures:
        trial.refused = trial.log.failures[0]
        return
    trial.difference = check(found, expected)
    if trial.difference is not None:
        trial.refused = f"wrong: {trial.difference}"


def time_them(
    trials: list[Trial], model: nn.Module, batch: Any, device: torch.device, repeats: int = REPEATS
) -> None:
    """Time those that were not refused, an interleaved pass of each."""
    running = [trial for trial in trials if trial.compute is not None]
    with shadow(model):
        steps = {str(n): _in_layout(trial, model, batch) for n, trial in enumerate(running)}
        found = seconds(steps, device, repeats, warm=1, budget=BUDGET)
    for trial, times in zip(running, found.values(), strict=True):
        trial.times = times


def race(trials: list[Trial], model: nn.Module, batch: Any, device: torch.device) -> None:
    """Time those that were not refused, and measure their memory."""
    time_them(trials, model, batch, device)
    for trial in (trial for trial in trials if trial.compute is not None):
        with shadow(model):
            trial.peak = peak_bytes(_in_layout(trial, model, batch), device)
            trial.compile_seconds = max(0.0, trial.compile_seconds - trial.seconds)


def _in_layout(trial: Trial, model: nn.Module, batch: Any) -> Callable[[], None]:
    assert trial.compute is not None
    step, layout = step_of(trial.compute, model, batch), trial.plan.layout
    if layout == "as_is":
        return step
    plain = [p.data for p in model.parameters()]
    with laid_out(model, layout):
        turned = [p.data for p in model.parameters()]

    def stepped() -> None:
        for parameter, data in zip(model.parameters(), turned, strict=True):
            parameter.data = data
        try:
            step()
        finally:
            for parameter, data in zip(model.parameters(), plain, strict=True):
                parameter.data = data

    return stepped


def best_of(trials: list[Trial]) -> Trial:
    """The fastest; of two within ``TIE`` the one that stands first, which is the simpler one."""
    best = trials[0]
    for trial in trials[1:]:
        if trial.seconds < best.seconds * (1 - TIE):
            best = trial
    return best
