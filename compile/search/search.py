"""Choose the compiled variant of a training step.

``search`` makes a reference of the eager step, tries plans on one batch (``candidates.try_plan`` compiles each and
compares it with the reference) as long as there is time, times those that compute the right thing, and returns the
fastest one (within the memory budget, if there is one).  The eager step is always among the candidates.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from loopwise import batch as batches
from loopwise.ranks import anywhere, from_main, world_size
from loopwise.wrappers import unwrap

from .. import layout
from ..graph.passes import USUAL
from ..plan import Plan
from ..spec import StepSpec
from ..verify.numerics import Comparison
from ..verify.sandbox import Sandbox
from . import memory
from .attempts import effective_passes, tried
from .candidates import Candidate, try_plan
from .deadline import Deadline
from .roofline import Roofline, measure_roofline
from .trials import Trials, fastest


@dataclass
class SearchResult:
    """Candidates of a search, the eager step first, and the winner."""

    candidates: list[Candidate]
    best: Candidate
    known: bool = False
    """``True`` if the plan was the user's or an earlier run's: it was compared, not timed."""
    notes: list[str] = field(default_factory=list)
    sandbox: Sandbox | None = None
    """The sandbox of the passes, which knows what a pass changes; ``None`` if no pass was run."""
    roofline: Roofline | None = None
    """Smallest possible time of a variant, if candidates were timed."""
    samples: int | None = None
    """Number of samples of the batch that was tried, if it was a part of the passed batch."""
    seconds: float = 0.0
    """Seconds that the search took."""
    processor: float = 0.0
    """Seconds of processor time that it took, compilers included."""
    memory: int | None = None
    """Bytes that forward and backward may hold; ``None``: no limit."""
    limit: float | None = None
    """Seconds that it might take; ``None`` if it had no limit."""


def search(spec: StepSpec, batch: Any, known: Plan | None) -> SearchResult:
    """Choose a plan on ``batch``, or on half of it if the eager step, which is the reference, runs out of memory.

    Args:
        spec: the training step.
        batch: a batch of usual shape.
        known: a plan that is only compared with the eager step, not timed.

    Raises:
        InputError: no variant stays within the memory budget.
        torch.OutOfMemoryError: no variant fits into memory, even on half of the batch.
    """
    deadline = Deadline(spec.max_seconds)
    result = _search(spec, batch, known, deadline)
    result.seconds, result.processor = deadline.elapsed, deadline.processor
    result.limit = None if result.known else deadline.limit
    return result


def _search(spec: StepSpec, batch: Any, known: Plan | None, deadline: Deadline) -> SearchResult:
    """Choose a plan on ``batch``, or on a part of it."""
    try:
        return choose(spec, batch, known, deadline)
    except torch.OutOfMemoryError:
        size = batches.length(batch) or 0
        if world_size() > 1 or size < 2:
            raise
    torch.cuda.empty_cache()
    half = batches.index(batch, torch.arange(size // 2), size)
    budget = None if spec.memory is None else max(2, spec.memory // 2)  # at most 1 would be a fraction
    result = _search(dataclasses.replace(spec, memory=budget), half, known, deadline)
    if result.samples is None:
        result.samples = size // 2
    eager, *others = result.candidates
    leaner = [c for c in others if c.compute is not None and (result.known or c.peak < eager.peak)]
    if not leaner:
        text = f"there is no memory for the eager step on {size} samples, and no other variant takes less"
        raise torch.OutOfMemoryError(text)
    if result.best not in leaner:
        result.best = fastest(leaner)
    note = f"tried on {result.samples} samples: there is no memory for the eager step on the whole batch"
    result.notes = [note]
    return result


def choose(spec: StepSpec, batch: Any, known: Plan | None, deadline: Deadline) -> SearchResult:
    """Try plans on ``batch`` and choose the fastest correct one.  Collective under DDP: rank 0's times decide."""
    eager = Candidate(Plan(precision=spec.precision), compute=spec.eager)
    comparison = Comparison(spec, batch)
    if found := _prevents_trials(comparison):
        return SearchResult([eager], eager, known=True, notes=[f"the step stays eager: {found}"])
    trials = Trials(comparison, deadline)
    if known is not None or spec.autotune == "off":
        return _compared(trials, batch, eager, known)
    if spec.memory is not None:
        memory.refuse_impossible(spec.memory, comparison.reference().eager)
    trials.time_shortly([eager], repeats=1)
    deadline.adapt(from_main(lambda: eager.seconds))
    trials.eager = eager
    candidates = tried(trials, eager)
    allowed = candidates if spec.memory is None else memory.fitting(candidates, spec.memory)
    if not allowed:
        raise memory.nothing_fits(candidates, spec.memory)
    trials.measure(allowed if allowed[0] is eager else [eager, *allowed])
    best = allowed[from_main(lambda: allowed.index(fastest(allowed)))]
    best = _communicating(spec, batch, eager, best)
    trials.progress.end(best.plan)
    roofline = measure_roofline(spec, trials.sandbox)
    return SearchResult(candidates, best, roofline=roofline, sandbox=trials.sandbox, memory=spec.memory)


def _prevents_trials(comparison: Comparison) -> str:
    """Return the reason why the step cannot be tried without a trace; run the eager reference otherwise."""
    found = comparison.sandbox.obstacle
    if not found:
        comparison.reference()
        found = comparison.sandbox.obstacle
    return (found or "it does on another rank") if anywhere(bool(found)) else ""


def _communicating(spec: StepSpec, batch: Any, eager: Candidate, best: Candidate) -> Candidate:
    """Return the best candidate, or the eager one if the best one's gradients differ once DDP has averaged them."""
    if unwrap(spec.model) is spec.model or world_size() == 1 or best is eager:
        return best
    assert best.compute is not None
    best.difference = Comparison(spec, batch, communicate=True).difference(best.compute)
    wrong = best.difference is not None
    if not anywhere(wrong):
        return best
    best.compute, best.refused = None, f"wrong under DDP: {best.difference or 'on another rank'}"
    return eager


def _compared(trials: Trials, batch: Any, eager: Candidate, known: Plan | None) -> SearchResult:
    """Compare one plan with the eager step, ``known`` or the usual one; the eager step wins if the plan is refused."""
    notes, sandbox, spec = [], trials.sandbox, trials.spec
    if known is None:
        candidate = trials.attempt(graph="inductor", passes=USUAL, regions=True)
        if not candidate.refused:
            candidate.plan = candidate.plan.changed(passes=effective_passes(candidate))
    else:
        if known.layout != "as_is" and (found := layout.obstacle(spec)):
            notes.append(f"{known.layout} is left off: {found}")
            known = known.changed(layout="as_is")
        if known.graph == "eager" and known.layout == "as_is":
            eager.plan = known
            return SearchResult([eager], eager, known=True, notes=notes, sandbox=sandbox)
        trials.progress.begin(known, 0)
        candidate = try_plan(spec, known, trials.comparison)
    best = eager if candidate.refused else _communicating(spec, batch, eager, candidate)
    notes += [f"{candidate.plan}: {candidate.refused}"] if candidate.refused else []
    return SearchResult([eager, candidate], best, known=True, notes=notes, sandbox=sandbox)
