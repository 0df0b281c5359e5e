"""Plans that are tried for a model: what costs little first, and then by Inductor what has proved to pay."""

from __future__ import annotations

from typing import Any

from loopwise.ranks import from_main

from .. import layout
from ..graph.passes import PASSES, USUAL
from ..loss_head.kernels import runs_kernels
from . import memory
from .candidates import Candidate
from .trials import NOTHING, SLOWER, Trials, is_faster

CERTAIN = 16 * 2**20
"""Bytes of tensors not materialised from which on the passes are sure to pay."""
WORTHWHILE = 2**20
"""Bytes of them from which on passes pay that are not slower."""


def tried(trials: Trials, eager: Candidate) -> list[Candidate]:
    """Try each plan that can be faster for this model once; with a memory budget, also those that hold less."""
    cheap = _with_kernel(trials, _with_passes(trials))
    rewritten, converted = _leading(cheap), None
    if layout.has_convolutions_to_convert(trials.spec.model) and not layout.obstacle(trials.spec):
        converted = trials.attempt(layout="channels_last")
        cheap.append(converted)
    candidates, budget = [eager, *cheap], trials.spec.memory
    changes = _changes_that_pay(trials, candidates, rewritten, converted)
    if budget is None:
        return candidates + _by_inductor(trials, rewritten, changes)
    trials.measure_peaks(candidates)
    passes = rewritten.plan.passes if rewritten is not None else ()
    if not memory.fitting(candidates, budget):
        candidates += memory.try_segments(trials, passes, budget)
    else:
        candidates += _by_inductor(trials, rewritten, changes)
        trials.measure_peaks(candidates)
    fit = memory.fitting(candidates, budget)
    if not any(one.plan.graph == "inductor" for one in fit):
        held_less = rewritten is not None and from_main(lambda: rewritten.peak < eager.peak)
        candidates += memory.try_compiled(trials, passes if held_less else (), budget, insist=not fit)
    return candidates


def _by_inductor(trials: Trials, rewritten: Candidate | None, changes: dict[str, Any]) -> list[Candidate]:
    """Try Inductor with the changes that paid without it, and only if it fails or ``autotune="max"`` in other ways.

    Each of these candidates takes as long as everything before, so the passes are not tried both on and off.
    """
    thorough = trials.spec.autotune == "max"
    candidates = [trials.attempt(graph="inductor", regions=True, **changes)]
    passes = rewritten.plan.passes if rewritten is not None else ()
    others: list[dict[str, Any]] = []
    if thorough:
        others += [{"regions": True}, {"passes": passes, "regions": True}]
        others += [changes] if candidates[0].plan.regions else []
        others += [changes | {"max_autotune": True}]
    elif candidates[0].log.graphs and candidates[0].refused not in ("", SLOWER):
        others = [{"regions": True}]
    seen = [changes | {"regions": True}]
    for other in others:
        other = {name: value for name, value in other.items() if value}
        if other not in seen:
            seen.append(other)
            candidates.append(trials.attempt(graph="inductor", **other))
    return candidates


def _changes_that_pay(
    trials: Trials, candidates: list[Candidate], rewritten: Candidate | None, converted: Candidate | None
) -> dict[str, Any]:
    """Return the fields of a plan that are worth being compiled, because they are faster or save memory.

    Args:
        trials: the trials.
        candidates: the eager step, and what was tried beside it without a compiler.
        rewritten: the one with passes, if they rewrote something.
        converted: the one with another memory layout, if there are convolutions.
    """
    eager, changes = candidates[0], dict[str, Any]()
    saved = 0 if rewritten is None else rewritten.log.saved_bytes
    if converted is not None or (rewritten is not None and saved < CERTAIN):
        trials.time_shortly(candidates)
    if rewritten is not None:
        # memory is worth as much as the noise of times
        kept = saved >= WORTHWHILE and not is_faster(eager, rewritten)
        if saved >= CERTAIN or kept or is_faster(rewritten, eager):
            changes["passes"] = rewritten.plan.passes
    if converted is not None and is_faster(converted, eager):
        changes["layout"] = converted.plan.layout
    return changes


def _with_passes(trials: Trials) -> list[Candidate]:
    """Try the captured graph with all usual passes; if the result is wrong, with each pass alone.

    Returns:
        The candidate with all passes that rewrote something and are correct, first, and the refused ones.
    """
    together = trials.attempt(graph="captured", passes=USUAL)
    effective = effective_passes(together)
    if not effective and together.refused in ("", NOTHING):
        return []
    if together.compute is not None:
        together.plan = together.plan.changed(passes=effective)
        return [together]
    if not together.log.graphs:
        return [together]  # it was not begun, or nothing could be captured
    alone = [
        trials.attempt(graph="captured", passes=(name,)) for name in USUAL
    ]  # find the pass that is wrong
    correct = tuple(n for c in alone if c.compute is not None for n in effective_passes(c))
    only = [c for c in alone if c.compute is not None and c.plan.passes == correct]
    return [*only, together, *(c for c in alone if c.compute is None and c.refused != NOTHING)]


def _with_kernel(trials: Trials, candidates: list[Candidate]) -> list[Candidate]:
    """Try the loss head's kernel; return its candidate if it is correct and faster than the leading one."""
    best = _leading(candidates)
    if best is None or "loss_head" not in best.plan.passes or not runs_kernels(trials.spec.device):
        return candidates
    passes = tuple(name for name in PASSES if name in best.plan.passes or name == "loss_kernel")
    other = trials.attempt(graph="captured", passes=passes)
    if other.compute is not None:
        trials.time_shortly([best, other])
        if is_faster(other, best):
            return [other, *candidates]
    return [*candidates, other]


def _leading(candidates: list[Candidate]) -> Candidate | None:
    """Return the first candidate, unless it was refused."""
    return candidates[0] if candidates and candidates[0].compute is not None else None


def effective_passes(candidate: Candidate) -> tuple[str, ...]:
    """Return the passes of a candidate that rewrote something."""
    names = {outcome.name for outcome in candidate.log.outcomes if outcome.rewritten}
    return tuple(name for name in candidate.plan.passes if name in names)
