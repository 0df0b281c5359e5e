"""Facts about a step beside those of a healthy run: parameters, gradients, changes, modes, samples, learning rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .healthy_run import RATE, ROUNDING, HealthyRun
from .healthy_sizes import NEAR, STEPS, Candidate
from .history import History, Step

EQUAL = 1e-6
"""Relative difference of two learning rates that counts as none."""
SKIPPED = 16
"""Steps at whose end a GradScaler has found its scale; it skips updates before."""
SAMPLES = 2
"""Largest number of different batch sizes of a healthy run whose steps have a fixed number of samples."""
Shapes = dict[str, tuple[int, ...]]


class Models(NamedTuple):
    """Parameters that only one of two trainings updates, by name, with their shapes."""

    here: Shapes
    """Of layers that the healthy run does not have in this form."""
    there: Shapes
    """Of layers that this training does not have in this form."""
    left_out: list[str]
    """Parameters of layers that both have, which only the healthy run updates."""
    added: list[str]
    """Parameters of layers that both have, which only this training updates."""


def parameters(step: Step) -> Shapes:
    """Return the shapes of the parameters that a step saved: those of the optimizers that updated."""
    names, _, shapes, _ = step.columns("weight", "mean")
    return dict(zip(names, shapes, strict=True))


def of_models(history: History, healthy: HealthyRun) -> Models:
    """Return the parameters that only one of the trainings updated so far; none if either saved no parameters."""
    here, there = _joined(map(parameters, history.steps())), _joined(map(parameters, healthy.steps))
    if not here or not there:
        return Models({}, {}, [], [])
    layers = _layers(history.steps(), history.type_of), _layers(healthy.steps, healthy.type_of)
    same = {name for name in layers[0].keys() & layers[1].keys() if layers[0][name] == layers[1][name]}
    left_out = [n for n in there if n not in here and n.rpartition(".")[0] in same]
    added = [n for n in here if n not in there and n.rpartition(".")[0] in same]
    return Models(
        {n: shape for n, shape in here.items() if there.get(n) != shape and n not in added},
        {n: shape for n, shape in there.items() if here.get(n) != shape and n not in left_out},
        left_out,
        added,
    )


def _joined(shapes: Iterable[Shapes]) -> Shapes:
    return {name: shape for of_step in shapes for name, shape in of_step.items()}


def _layers(steps: Sequence[Step], type_of: Callable[[str], str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the class, and the shape of a sample's output, of each layer that was called."""
    layers: dict[str, tuple[str, tuple[int, ...]]] = {}
    for step in steps:
        names, _, shapes, _ = step.columns("output", "mean")
        layers |= {
            n: (type_of(n), shape[1:]) for n, shape in zip(names, shapes, strict=True) if n not in layers
        }
    return layers


def of_gradients(step: Step, healthy: HealthyRun) -> Iterator[Candidate]:
    """Yield parameters that get a gradient, or change, in one of the two trainings alone."""
    until = 2 * step.mode_step + NEAR
    updates = [other for other in healthy.steps if other.updated and other.mode_step <= until]
    if not step.updated:
        yield from _without_update(step, healthy)
    if not step.updated or len(updates) < STEPS:
        return
    there = set[str]().union(*map(parameters, updates))
    here = set(step.columns("gradient", "mean").names)
    names = [name for name in parameters(step) if name in there]
    missing = {name for name in names if name in healthy.with_gradient and name not in here}
    for name in names:
        if name in missing:
            yield Candidate("no gradient", name)
        elif name in here and healthy.without_gradient(name):
            yield Candidate("new gradient", name)
    near = [other for other in updates if other.mode_step >= step.mode_step // 2 - NEAR]
    if len(near) < STEPS or step.marks.get("skipped"):
        return
    changing = set.intersection(*(_changing(other, ROUNDING) for other in near)) & healthy.with_gradient
    for name in names:
        if name in changing - _changing(step) - missing:
            yield Candidate("no change", name)


def _without_update(step: Step, healthy: HealthyRun) -> Iterator[Candidate]:
    """Yield that no optimizer updates, if there is an update at each near step of the healthy run."""
    number = step.mode_step
    near = [o for o in healthy.steps if number // 2 - NEAR <= o.mode_step <= 2 * number + NEAR]
    if number >= SKIPPED and len(near) >= STEPS and all(other.updated for other in near):
        yield Candidate("no update", "")


def _changing(step: Step, least: float = 0.0) -> set[str]:
    """Return the parameters whose relative updates are not at most ``least``."""
    names, (ratios,), _, _ = step.columns("update", "ratio")
    return {name for name, ratio in zip(names, ratios, strict=True) if not ratio <= least}


def of_modes(step: Step, healthy: HealthyRun) -> Iterator[Candidate]:
    """Yield modules in another mode, and gradients that are set to zero in one of the trainings alone."""
    others = [o for o in healthy.steps if o.mode_step <= 2 * step.mode_step + NEAR and o.updated]
    if not step.updated or len(others) < STEPS:
        return
    for fact in ("evaluating", "not_zeroed"):
        here = _names(step.facts, fact)
        there = [_names(other.facts, fact) for other in others]
        for name in here:
            if not any(there):
                yield Candidate(fact, name)
        if not here and all(there):
            yield Candidate(f"not {fact}", there[0][0])


def _names(facts: Mapping[str, object], fact: str) -> list[str]:
    names = facts.get(fact, ())
    return [str(name) for name in names] if isinstance(names, list) else []


def of_samples(step: Step, healthy: HealthyRun) -> Iterator[Candidate]:
    """Yield the number of samples of the step, if all steps of the healthy run have another one."""
    until = 2 * step.mode_step + NEAR
    there = {other.samples for other in healthy.scalars if other.mode_step <= until} - {None}
    known = [count for count in there if count is not None]
    if step.samples is not None and known and len(known) <= SAMPLES and step.samples not in known:
        yield Candidate("samples", "input", step.samples, min(known), max(known))


def of_rates(step: Step, healthy: HealthyRun) -> Iterator[Candidate]:
    """Yield the learning rates that the healthy run has at no near step.

    If the rate changes at most of the steps that were read there, those are the steps between which this one lies, and
    two more on both sides, by whose range the range is widened.  Otherwise they are those from half to twice this step.
    """
    for name, rate in step.scalars("metrics").items():
        if not name.startswith(RATE):
            continue
        points = [
            (other.mode_step, value)
            for other in healthy.scalars
            if np.isfinite(value := other.scalars("metrics").get(name, np.nan))
        ]
        if len(points) < STEPS or step.mode_step > points[-1][0]:
            continue
        steps, rates = np.array([s for s, _ in points]), np.array([r for _, r in points])
        number, room = step.mode_step, 0.0
        if 2 * np.count_nonzero(np.diff(rates)) > len(rates):
            place = int(np.searchsorted(steps, number, "right"))
            near = rates[max(place - 3, 0) : place + 3]
            room = float(near.max() - near.min())
        else:
            near = rates[(steps >= number // 2 - NEAR) & (steps <= 2 * number + NEAR)]
        if not len(near):
            continue
        low, high = float(near.min()), float(near.max())
        if not low - room - EQUAL * abs(low) <= rate <= high + room + EQUAL * abs(high):
            yield Candidate("learning rate", name, rate, low, high)
