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

from ..graph.passes import PASSES, USUAL
from ..linear_cross_entropy.kernels import runs_kernels
from ..plan import Plan
from ..spec import StepSpec
from ..verify.reference import Reference, reference
from .candidates import (
    TIE,
    Candidate,
    has_convolutions_to_convert,
    measure_candidates,
    time_candidates,
    try_plan,
)
from .roofline import Roofline, measure_roofline

BUDGETS = (0.7, 0.5, 0.3, 0.15, 0.0)
"""Shares of activations to save that are tried, in this order, to get below a memory budget."""
CERTAIN = 16 * 2**20
"""Bytes of tensors not materialised from which on the passes are sure to pay.  Inductor is then tried with the
passes only, unless ``autotune="max"``, which saves one compilation."""
Errors = dict[str, float]
"""Relative errors of the eager step by tensor."""
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
    errors: Errors = field(default_factory=dict)
    """Measured errors of the eager step."""
    roofline: Roofline | None = None
    """Smallest possible time of a variant, if candidates were timed."""
    samples: int | None = None
    """Number of samples of the batch that was tried, if it was a part of the passed batch."""


def search(spec: StepSpec, batch: Any, known: Plan | None, errors: Errors | None = None) -> SearchResult:
    """Choose a plan on ``batch``, or on half of it if the eager step, which is the reference, runs out of memory.

    Args:
        spec: the training step.
        batch: a batch of usual shape.
        known: a plan that is only compared with the eager step, not timed.
        errors: the eager step's relative errors from the run that measured ``known``.

    Raises:
        InputError: no variant stays within the memory budget.
        torch.OutOfMemoryError: no variant fits into memory, even on half of the batch.
    """
    try:
        return choose(spec, batch, known, errors)
    except torch.OutOfMemoryError:
        size = batches.length(batch) or 0
        if world_size() > 1 or size < 2:
            raise
    torch.cuda.empty_cache()
    half = batches.index(batch, torch.arange(size // 2), size)
    memory = None if spec.memory is None else max(2, spec.memory // 2)  # at most 1 would be a fraction
    result = search(dataclasses.replace(spec, memory=memory), half, known, errors)
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


def choose(spec: StepSpec, batch: Any, known: Plan | None, errors: Errors | None = None) -> SearchResult:
    """Try plans on ``batch`` and choose the fastest correct one.  Collective under DDP: rank 0's times decide."""
    eager = Candidate(Plan(precision=spec.precision), compute=spec.eager)
    expected = reference(spec, batch, errors)
    if known is not None or spec.autotune == "off":
        plan = known or Plan(graph="inductor", passes=USUAL, precision=spec.precision, regions=True)
        result = _compared(spec, batch, eager, expected, plan)
        wrong = result.candidates[-1].difference is not None
        return choose(spec, batch, known) if errors and anywhere(wrong) else result
    candidates = [eager, *_tried(spec, batch, expected, eager)]
    measure_candidates(candidates, spec, batch)
    best = candidates[from_main(lambda: candidates.index(fastest(candidates)))]
    if spec.memory is not None and best.peak > spec.memory:
        best = _within_memory(spec, batch, expected, candidates)
    return SearchResult(candidates, best, errors=expected.errors, roofline=measure_roofline(spec, batch))


def _compared(spec: StepSpec, batch: Any, eager: Candidate, expected: Reference, plan: Plan) -> SearchResult:
    """Compare one plan with the eager step; the eager step wins if the plan is refused."""
    if plan.graph == "eager" and plan.layout == "as_is":
        eager.plan = plan
        return SearchResult([eager], eager, known=True, errors=expected.errors)
    candidate = try_plan(spec, plan, batch, expected)
    best, notes = (eager, [f"{plan}: {candidate.refused}"]) if candidate.refused else (candidate, [])
    return SearchResult([eager, candidate], best, known=True, notes=notes, errors=expected.errors)


def _tried(spec: StepSpec, batch: Any, expected: Reference, eager: Candidate) -> list[Candidate]:
    """Try each plan that can be faster for this model once."""
    thorough = spec.autotune == "max"
    attempt = functools.partial(_attempt, spec, batch, expected)
    candidates = _with_kernel(spec, batch, attempt, _with_passes(attempt))
    rewritten = _leading(candidates)
    passes = rewritten.plan.passes if rewritten is not None else ()
    channels_last = False
    if has_convolutions_to_convert(spec.model):
        candidates.append(attempt(layout="channels_last"))
        channels_last = thorough or is_faster(candidates[-1], eager, spec, batch)
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


def _attempt(spec: StepSpec, batch: Any, expected: Reference, **changes: Any) -> Candidate:
    """Try one plan; the candidate's plan says ``regions`` only if the graph has repeated blocks."""
    plan = Plan(precision=spec.precision).changed(**changes)
    candidate = try_plan(spec, plan, batch, expected)
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
    spec: StepSpec, batch: Any, attempt: Attempt, candidates: list[Candidate]
) -> list[Candidate]:
    """Try the loss head's kernel; return its candidate if it is correct and faster than the leading one."""
    best = _leading(candidates)
    if best is None or "loss_head" not in best.plan.passes or not runs_kernels(spec.device):
        return candidates
    passes = tuple(name for name in PASSES if name in best.plan.passes or name == "loss_kernel")
    other = attempt(graph="captured", passes=passes)
    if other.compute is not None and is_faster(other, best, spec, batch):
        return [other, *candidates]
    return [*candidates, other]


def _leading(candidates: list[Candidate]) -> Candidate | None:
    """Return the first candidate, unless it was refused."""
    return candidates[0] if candidates and candidates[0].compute is not None else None


def _effective_passes(candidate: Candidate) -> tuple[str, ...]:
    """Return the passes of a candidate that rewrote something."""
    names = {outcome.name for outcome in candidate.log.outcomes if outcome.rewritten}
    return tuple(name for name in candidate.plan.passes if name in names)


def _within_memory(spec: StepSpec, batch: Any, expected: Reference, candidates: list[Candidate]) -> Candidate:
    """Return the fastest candidate within the memory budget; try new ones that compute activations again."""
    assert spec.memory is not None
    passes = next((c.plan.passes for c in candidates if c.plan.passes and c.compute), ())
    for budget in BUDGETS:
        plan = {"graph": "inductor", "passes": passes, "budget": budget, "regions": True}
        candidate = _attempt(spec, batch, expected, **plan)
        measure_candidates([candidate], spec, batch)
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


def is_faster(candidate: Candidate, other: Candidate, spec: StepSpec, batch: Any) -> bool:
    """Return whether ``candidate`` is faster than ``other``; each runs a few passes."""
    both = [other, candidate]
    time_candidates(both, spec, batch, repeats=3)
    return from_main(lambda: fastest(both) is candidate)
