"""From a batch to a plan: which forms of the step to try, and the one that stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.devices import native_dtype
from loopwise.errors import InputError
from loopwise.ranks import anywhere, from_main, world_size

from ..graph.backend import Log
from ..graph.passes import PASSES, USUAL
from ..linear_cross_entropy.kernels import runs_kernels
from ..plan import Plan
from ..verify.numerics import Reference, reference
from ..verify.sandbox import Compute, shadow, step_of
from .candidates import Trial, attempt, best_of, has_images, race, time_them
from .roofline import Floor, floor_of

BUDGETS = (0.7, 0.5, 0.3, 0.15, 0.0)
"""Shares of activations to save that are tried, in this order, to get below a memory budget."""
CERTAIN = 16 * 2**20
"""Bytes of tensors not materialised from which on the passes are not doubted: Inductor's form is tried with
them only, unless ``autotune="max"`` (one compilation less)."""


class Step(Protocol):
    """What choosing needs to know of a training step."""

    model: nn.Module
    loss: Any
    device: torch.device
    precision: str
    autotune: str
    memory: int | None

    def make(self, plan: Plan, log: Log) -> Compute: ...

    def computation(self, model: nn.Module, loss: Any) -> Any: ...


@dataclass
class Search:
    """All that was tried, the eager step first, and what stays."""

    trials: list[Trial]
    best: Trial
    known: bool = False
    """The plan was pinned, or measured in an earlier run: only compared, not timed."""
    notes: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    """Of the eager step by tensor, relative, as far as they were measured."""
    floor: Floor | None = None
    """What no form of the step can be faster than, where forms were timed."""
    samples: int | None = None
    """Of the batch that was tried, where it was a part of the given one."""


def search(step: Step, batch: Any, known: Plan | None, noise: dict[str, float] | None = None) -> Search:
    """``choose``, on half of the batch where there is no memory for the eager step, which forms are compared with."""
    try:
        return choose(step, batch, known, noise)
    except torch.OutOfMemoryError:
        size = batches.length(batch) or 0
        if world_size() > 1 or size < 2:
            raise
    torch.cuda.empty_cache()
    half = batches.index(batch, torch.arange(size // 2), size)
    memory = step.memory
    step.memory = None if memory is None else memory // 2
    try:
        found = search(step, half, known, noise)
    finally:
        step.memory = memory
    if found.samples is None:
        found.samples = size // 2
    eager, *others = found.trials
    leaner = [t for t in others if t.compute is not None and (found.known or t.peak < eager.peak)]
    if not leaner:
        raise torch.OutOfMemoryError(
            f"there is no memory for the eager step on {size} samples, and no other form takes less"
        )
    if found.best not in leaner:
        found.best = best_of(leaner)
    found.notes = [
        f"tried on {found.samples} samples: there is no memory for the eager step on the whole batch"
    ]
    return found


def choose(step: Step, batch: Any, known: Plan | None, noise: dict[str, float] | None = None) -> Search:
    """Try plans on ``batch`` and say which one stays.  Collective under DDP: rank 0's times decide.

    Args:
        step: the training step.
        batch: a batch of usual shape.
        known: a plan that is only compared, not timed.
        noise: the eager step's errors where ``known`` was measured.
    """
    eager = Trial(Plan(precision=step.precision))
    eager.compute = step.make(eager.plan, eager.log)
    assert eager.compute is not None
    expected = reference(eager.compute, step.computation, step.model, step.loss, batch, noise)
    if known is not None or step.autotune == "off":
        search = _without_race(step, batch, eager, expected, known or _first_choice(step))
        wrong = search.trials[-1].difference is not None
        return choose(step, batch, known) if noise and anywhere(wrong) else search
    trials = [eager, *_rewritten(step, batch, expected, eager)]
    race(trials, step.model, batch, step.device)
    best = trials[from_main(lambda: trials.index(best_of(trials)))]
    if step.memory is not None and best.peak > step.memory:
        best = _within(step, batch, expected, trials)
    return Search(trials, best, errors=expected.noise, floor=_floor(step, eager.compute, batch))


def _floor(step: Step, eager: Compute, batch: Any) -> Floor | None:
    """``None`` where operations cannot be counted; that is no reason to stop."""
    dtype = native_dtype(step.device) if step.precision == "mixed" else torch.float32
    try:
        with shadow(step.model):
            return floor_of(step_of(eager, step.model, batch), step.device, dtype)
    except Exception:
        return None


def _first_choice(step: Step) -> Plan:
    """What is used where nothing is to be measured."""
    return Plan(graph="inductor", passes=USUAL, precision=step.precision, regions=True)


def _without_race(step: Step, batch: Any, eager: Trial, expected: Reference, plan: Plan) -> Search:
    if plan.graph == "eager" and plan.layout == "as_is":
        eager.plan = plan
        return Search([eager], eager, known=True, errors=expected.noise)
    trial = attempt(plan, step.make, step.model, batch, expected)
    if trial.compute is not None:
        return Search([eager, trial], trial, known=True, errors=expected.noise)
    notes = [f"{plan}: {trial.refused}"]
    return Search([eager, trial], eager, known=True, notes=notes, errors=expected.noise)


def _rewritten(step: Step, batch: Any, expected: Reference, eager: Trial) -> list[Trial]:
    """The plans beside the eager one that make sense for this model, each tried once."""
    whole = step.autotune == "max"

    def tried(**changes: Any) -> Trial:
        return _tried(step, batch, expected, **changes)

    found = _with_kernel(step, batch, tried, _with_passes(tried))
    best = _leading(found)
    passes = best.plan.passes if best is not None else ()
    turns = False
    if has_images(step.model):
        turned = tried(layout="channels_last")
        found.append(turned)
        turns = whole or _faster(step, batch, eager, turned)
    if whole or best is None or best.log.saved_bytes < CERTAIN:
        found.append(tried(graph="inductor", regions=True))
    if passes:
        found.append(tried(graph="inductor", passes=passes, regions=True))
    if whole and found[-1].plan.regions:
        found.append(tried(graph="inductor", passes=passes))
    if turns:
        found.append(tried(graph="inductor", passes=passes, layout="channels_last", regions=True))
    if whole:
        found.append(tried(graph="inductor", passes=passes, max_autotune=True))
    return found


def _tried(step: Step, batch: Any, expected: Reference, **changes: Any) -> Trial:
    """A plan tried once; it says ``regions`` only where some were found."""
    plan = Plan(precision=step.precision).changed(**changes)
    trial = attempt(plan, step.make, step.model, batch, expected)
    if not trial.log.regions:
        trial.plan = plan.changed(regions=False)
    return trial


def _faster(step: Step, batch: Any, plain: Trial, other: Trial) -> bool:
    """Whether another layout, or a kernel, is faster, by a few steps of each."""
    both = [plain, other]
    time_them(both, step.model, batch, step.device, repeats=3)
    return from_main(lambda: best_of(both) is other)


def _with_passes(tried: Callable[..., Trial]) -> list[Trial]:
    """The captured graph with the passes that find something and compute the right thing, which stands first."""
    whole = tried(graph="captured", passes=USUAL)
    useful = _useful(whole)
    if not useful and not whole.refused:
        return []
    if whole.compute is not None:
        whole.plan = whole.plan.changed(passes=useful)
        return [whole]
    alone = [tried(graph="captured", passes=(name,)) for name in USUAL]  # which one is wrong?
    right = tuple(n for trial in alone if trial.compute is not None for n in _useful(trial))
    rest = [trial for trial in alone if trial.compute is not None and trial.plan.passes == right]
    return [*rest, whole, *(trial for trial in alone if trial.compute is None)]


def _with_kernel(step: Step, batch: Any, tried: Callable[..., Trial], found: list[Trial]) -> list[Trial]:
    """The same with the loss head's kernel, which stands first where it is right and faster."""
    best = _leading(found)
    if best is None or "loss_head" not in best.plan.passes or not runs_kernels(step.device):
        return found
    passes = tuple(name for name in PASSES if name in best.plan.passes or name == "loss_kernel")
    other = tried(graph="captured", passes=passes)
    if other.compute is not None and _faster(step, batch, best, other):
        return [other, *found]
    return [*found, other]


def _leading(found: list[Trial]) -> Trial | None:
    """The first one, where it was not refused."""
    return found[0] if found and found[0].compute is not None else None


def _useful(trial: Trial) -> tuple[str, ...]:
    """The passes of a trial that rewrote something."""
    rewrote = {outcome.name for outcome in trial.log.outcomes if outcome.rewritten}
    return tuple(name for name in trial.plan.passes if name in rewrote)


def _within(step: Step, batch: Any, expected: Reference, trials: list[Trial]) -> Trial:
    """The fastest that holds no more than the memory budget, with recomputation where needed."""
    assert step.memory is not None
    passes = next((trial.plan.passes for trial in trials if trial.plan.passes and trial.compute), ())
    for budget in BUDGETS:
        trial = _tried(step, batch, expected, graph="inductor", passes=passes, budget=budget, regions=True)
        race([trial], step.model, batch, step.device)
        trials.append(trial)
        fitting = [t for t in trials if t.compute is not None and t.peak <= step.memory]
        if from_main(lambda: bool(fitting)):  # noqa: B023  # called at once
            return trials[from_main(lambda: trials.index(best_of(fitting)))]  # noqa: B023
    least = min(trial.peak for trial in trials if trial.compute is not None)
    raise InputError(
        f"a memory budget of {step.memory / 2**20:,.2f} MiB",
        f"at least {least / 2**20:,.2f} MiB for a batch of this size",
        "that much is held even when all activations are computed again",
        "raise the budget, or take a smaller batch",
    )
