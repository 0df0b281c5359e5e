"""Candidates of the search: plans that are compiled, compared with the eager step, and timed in turns."""

from __future__ import annotations

import contextlib
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
from ..spec import Compute, StepSpec
from ..verify.numerics import Difference, compare
from ..verify.reference import Reference
from ..verify.sandbox import observe, restored, sandbox, training_pass
from .measure import REPEATS, median, peak_bytes, seconds
from .variants import variant

TIE = 0.02
"""Share of the simpler candidate's time that a candidate must save to win; smaller differences are noise."""
BUDGET = 10.0
"""Seconds of timing after which four timed repeats are enough."""


@dataclass
class Candidate:
    """A plan, its compiled computation, and the results of the comparison and of the measurement."""

    plan: Plan
    log: Log = field(default_factory=Log)
    compute: Compute | None = None
    """``None``: the candidate was refused."""
    refused: str = ""
    """Reason of the refusal."""
    difference: Difference | None = None
    """The worst difference from the eager step, if it is over its budget."""
    compile_seconds: float = 0.0
    """Seconds of the first pass, which captures and compiles, minus the seconds of a later pass."""
    times: list[float] = field(default_factory=list)
    """Seconds of forward and backward."""
    peak: int = 0
    """Largest number of bytes that forward and backward hold besides parameters and batch."""

    @property
    def seconds(self) -> float:
        """Median seconds of forward and backward; infinite if they were not timed."""
        return median(self.times) if self.times else float("inf")


@contextlib.contextmanager
def in_layout(model: nn.Module, layout: str) -> Iterator[None]:
    """Bring the model's convolution weights into ``layout``; restore their layouts on leaving."""
    with restored("data", model.parameters()):
        set_layout(model, layout)
        yield


def set_layout(model: nn.Module, layout: str) -> None:
    """Bring the model's convolution weights into ``layout``, in place."""
    for parameter in model.parameters():
        if layout == "channels_last" and parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def has_convolutions_to_convert(model: nn.Module) -> bool:
    """Return whether the weight of a convolution over images is not in channels_last layout yet."""
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    return any(not weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def try_plan(spec: StepSpec, plan: Plan, batch: Any, expected: Reference) -> Candidate:
    """Compile by ``plan`` and compare one pass with the eager one; refuse the plan on all ranks if any rank does."""
    candidate = Candidate(plan)
    log, compute = candidate.log, variant(spec, plan, candidate.log)
    try:
        with in_layout(spec.model, plan.layout), collect_graph_breaks(log.breaks):
            start = time.perf_counter()
            observed = observe(compute, spec.model, batch)
            candidate.compile_seconds = time.perf_counter() - start
        candidate.refused = log.failures[0] if log.failures else ""
    except Exception as error:
        candidate.refused = first_line(error)
    if not candidate.refused:
        candidate.difference = compare(observed, expected)
        candidate.refused = f"wrong: {candidate.difference}" if candidate.difference is not None else ""
    if anywhere(bool(candidate.refused)):
        candidate.refused = candidate.refused or "refused on another rank"
    else:
        candidate.compute = compute
    return candidate


def time_candidates(candidates: list[Candidate], spec: StepSpec, batch: Any, repeats: int = REPEATS) -> None:
    """Time the candidates that were not refused, one pass of each in turns."""
    running = [candidate for candidate in candidates if candidate.compute is not None]
    with sandbox(spec.model):
        steps = {str(n): _pass_in_layout(c, spec.model, batch) for n, c in enumerate(running)}
        times = seconds(steps, spec.device, repeats, warm=1, budget=BUDGET)
    for candidate, own in zip(running, times.values(), strict=True):
        candidate.times = own


def measure_candidates(candidates: list[Candidate], spec: StepSpec, batch: Any) -> None:
    """Measure time and memory of the candidates that were not refused."""
    time_candidates(candidates, spec, batch)
    for candidate in (candidate for candidate in candidates if candidate.compute is not None):
        with sandbox(spec.model):
            candidate.peak = peak_bytes(_pass_in_layout(candidate, spec.model, batch), spec.device)
            candidate.compile_seconds = max(0.0, candidate.compile_seconds - candidate.seconds)


def _pass_in_layout(candidate: Candidate, model: nn.Module, batch: Any) -> Callable[[], None]:
    """Return a function that runs a pass with the weights in the candidate's layout and restores their layout."""
    assert candidate.compute is not None
    run, layout = training_pass(candidate.compute, model, batch), candidate.plan.layout
    if layout == "as_is":
        return run
    with in_layout(model, layout):
        converted = [p.data for p in model.parameters()]

    def run_converted() -> None:
        with restored("data", model.parameters()):
            for parameter, data in zip(model.parameters(), converted, strict=True):
                parameter.data = data
            run()

    return run_converted
