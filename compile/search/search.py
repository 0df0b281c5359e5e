"""Choose the compiled variant of a training step.

``search`` makes a reference of the eager step, tries plans on one batch (``candidates.try_plan`` compiles each and
compares it with the reference), times those that compute the right thing, and returns the fastest one (within the
memory budget, if there is one).  The eager step is always among the candidates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from loopwise import batch as batches
from loopwise.errors import InputError
from loopwise.ranks import anywhere, from_main, world_size
from loopwise.wrappers import unwrap

from .. import layout
from ..graph.passes import PASSES, USUAL
from ..linear_cross_entropy.kernels import runs_kernels
from ..plan import Plan
from ..spec import StepSpec
from ..verify.numerics import Comparison
from ..verify.sandbox import Sandbox
from .candidates import TIE, Candidate, measure_candidates, time_candidates, try_plan
from .roofline import Roofline, measure_roofline

BUDGETS = (0.7, 0.5, 0.3, 0.15, 0.0)
"""Shares of activations to save that are tried, in this order, to get below a memory budget."""
CERTAIN = 16 * 2**20
"""Bytes of tensors not materialised from which on the passes are sure to pay.  Inductor is then tried with the
passes only, unless ``autotune="max"``, which saves one compilation."""
Attempt = Callable[..., Candidate]
"""Function that tries a plan, given by its differences from the eager one."""


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
    try:
        return choose(spec, batch, known)
    except torch.OutOfMemoryError:
        size = batches.length(batch) or 0
        if world_size() > 1 or size < 2:
            raise
    torch.cuda.empty_cache()
    half = batches.index(batch, torch.arange(size // 2), size)
    memory = None if spec.memory is None else max(2, spec.memory // 2)  # at most 1 would be a fraction
    result = search(dataclasses.replace(spec, memory=memory), half, known)
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


def choose(spec: StepSpec, batch: Any, known: Plan | None) -> SearchResult:
    """Try plans on ``batch`` and choose the fastest correct one.  Collective under DDP: rank 0's times decide."""
    eager = Candidate(Plan(precision=spec.precision), compute=spec.eager)
    comparison = Comparison(spec, batch)
    if found := _prevents_trials(comparison):
        return SearchResult([eager], eager, known=True, notes=[f"the step stays eager: {found}"])
    if known is not None or spec.autotune == "off":
        plan = known or Plan(graph="inductor", passes=USUAL, precision=spec.precision, regions=True)
        return _compared(spec, batch, eager, comparison, plan)
    candidates = [eager, *_tried(spec, comparison, eager)]
    measure_candidates(candidates, comparison.sandbox)
    best = candidates[from_main(lambda: candidates.index(fastest(candidates)))]
    if spec.memory is not None and best.peak > spec.memory:
        best = _within_memory(spec, comparison, candidates)
    best = _communicating(spec, batch, eager, best)
    roofline = measure_roofline(spec, comparison.sandbox)
    return SearchResult(candidates, best, roofline=roofline, sandbox=comparison.sandbox)


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


def _compared(
    spec: StepSpec, batch: Any, eager: Candidate, comparison: Comparison, plan: Plan
) -> SearchResult:
    """Compare one plan with the eager step; the eager step wins if the plan is refused."""
    notes, sandbox = [], comparison.sandbox
    if plan.layout != "as_is" and (found := layout.obstacle(spec)):
        notes.append(f"{plan.layout} is left off: {found}")
        plan = plan.changed(layout="as_is")
    if plan.graph == "eager" and plan.layout == "as_is":
        eager.plan = plan
        return SearchResult([eager], eager, known=True, notes=notes, sandbox=sandbox)
    candidate = try_plan(spec, plan, comparison)
    best = eager if candidate.refused else _communicating(spec, batch, eager, candidate)
    notes += [f"{plan}: {candidate.refused}"] if candidate.refused else []
    return SearchResult([eager, candidate], best, known=True, notes=notes, sandbox=sandbox)


def _tried(spec: StepSpec, comparison: Comparison, eager: Candidate) -> list[Candidate]:
    """Try each plan that can be faster for this model once."""
    thorough = spec.autotune == "max"
    attempt = functools.partial(_attempt, spec, comparison)
    candidates = _with_kernel(spec, comparison.sandbox, attempt, _with_passes(attempt))
    rewritten = _leading(candidates)
    passes = rewritten.plan.passes if rewritten is not None else ()
    channels_last = False
    if layout.has_convolutions_to_convert(spec.model) and not layout.obstacle(spec):
        candidates.append(attempt(layout="channels_last"))
        channels_last = thorough or is_faster(candidates[-1], eager, comparison.sandbox)
    if thorough or rewritten is None or rewritten.log.saved_bytes < CERTAIN:
        candidates.append(attempt(graph="inductor", regions=True))
    if passes:
        candidates.append(attempt(graph="inductor", passes=passes, regions=True))
    if thorough and candidates[-1].plan.regions:
        candidates.append(attempt(graph="inductor", passes=passes))
    if channels_last:
        candidates.append(attempt(graph="inductor", passes=passes, layout="channels_last", regions=True))
    if thorough:
        candidates.append(attempt(graph="inductor", passes=passes, max_autotune=True))
    return candidates


def _attempt(spec: StepSpec, comparison: Comparison, **changes: Any) -> Candidate:
    """Try one plan; the candidate's plan says ``regions`` only if the graph has repeated blocks."""
    plan = Plan(precision=spec.precision).changed(**changes)
    candidate = try_plan(spec, plan, comparison)
    if not candidate.log.regions:
        candidate.plan = plan.changed(regions=False)
    return candidate


def _with_passes(attempt: Attempt) -> list[Candidate]:
    """Try the captured graph with all usual passes; if the result is wrong, with each pass alone.

    Returns:
        The candidate with all passes that rewrote something and are correct, first, and the refused ones.
    """
    together = attempt(graph="captured", passes=USUAL)
    effective = _effective_passes(together)
    if not effective and not together.refused:
        return []
    if together.compute is not None:
        together.plan = together.plan.changed(passes=effective)
        return [together]
    alone = [attempt(graph="captured", passes=(name,)) for name in USUAL]  # find the pass that is wrong
    correct = tuple(n for c in alone if c.compute is not None for n in _effective_passes(c))
    only = [c for c in alone if c.compute is not None and c.plan.passes == correct]
    return [*only, together, *(c for c in alone if c.compute is None)]


def _with_kernel(
    spec: StepSpec, sandbox: Sandbox, attempt: Attempt, candidates: list[Candidate]
) -> list[Candidate]:
    """Try the loss head's kernel; return its candidate if it is correct and faster than the leading one."""
    best = _leading(candidates)
    if best is None or "loss_head" not in best.plan.passes or not runs_kernels(spec.device):
        return candidates
    passes = tuple(name for name in PASSES if name in best.plan.passes or name == "loss_kernel")
    other = attempt(graph="captured", passes=passes)
    if other.compute is not None and is_faster(other, best, sandbox):
        return [other, *candidates]
    return [*candidates, other]


def _leading(candidates: list[Candidate]) -> Candidate | None:
    """Return the first candidate, unless it was refused."""
    return candidates[0] if candidates and candidates[0].compute is not None else None


def _effective_passes(candidate: Candidate) -> tuple[str, ...]:
    """Return the passes of a candidate that rewrote something."""
    names = {outcome.name for outcome in candidate.log.outcomes if outcome.rewritten}
    return tuple(name for name in candidate.plan.passes if name in names)


def _within_memory(spec: StepSpec, comparison: Comparison, candidates: list[Candidate]) -> Candidate:
    """Return the fastest candidate within the memory budget; try new ones that compute activations again."""
    assert spec.memory is not None
    passes = next((c.plan.passes for c in candidates if c.plan.passes and c.compute), ())
    for budget in BUDGETS:
        plan = {"graph": "inductor", "passes": passes, "budget": budget, "regions": True}
        candidate = _attempt(spec, comparison, **plan)
        measure_candidates([candidate], comparison.sandbox)
        candidates.append(candidate)
        fitting = [c for c in candidates if c.compute is not None and c.peak <= spec.memory]
        if from_main(lambda: bool(fitting)):  # noqa: B023  # called at once
            return candidates[from_main(lambda: candidates.index(fastest(fitting)))]  # noqa: B023
    least = min(candidate.peak for candidate in candidates if candidate.compute is not None)
    raise InputError(
        f"a memory budget of {spec.memory / 2**20:,.2f} MiB",
        f"at least {least / 2**20:,.2f} MiB for a batch of this size",
        "that much is held even when all activations are computed again",
        "raise the budget, or take a smaller batch",
    )


def fastest(candidates: list[Candidate]) -> Candidate:
    """Return the fastest candidate; of two within ``TIE`` the first one, which is simpler."""
    best = candidates[0]
    for candidate in candidates[1:]:
        if candidate.seconds < best.seconds * (1 - TIE):
            best = candidate
    return best


def is_faster(candidate: Candidate, other: Candidate, sandbox: Sandbox) -> bool:
    """Return whether ``candidate`` is faster than ``other``; each runs a few passes."""
    both = [other, candidate]
    time_candidates(both, sandbox, repeats=3)
    return from_main(lambda: fastest(both) is candidate)
