"""Sizes of the tensors of a step beside those of a healthy run, and the limits of what is noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..store.columns import Floats
from .healthy_run import KINDS, RATE, HealthyRun, Sizes, logs_of, logs_of_scalars, size
from .history import Step

LEAST = 0.25
"""Smallest difference that counts, as a logarithm, or as a share of the input's size: less is no fault."""
SPREADS = 5.0
"""Standard deviations of the healthy run's neighbouring steps that are noise."""
STEPS = 3
"""Smallest number of steps of the healthy run by which a size is judged."""
NEAR = 5
"""Number of steps that every window has beside its octaves, because the first octaves have few steps."""
CHANGES = ("step", "update")
"""Kinds of sizes that are as large as the learning rate makes them."""
UNKNOWN = 8
"""Number of samples of a step, if it is not known."""
DEVIATION = 1.048
"""Standard deviation of a normal variable, from the median of the absolute differences of two: 1 / (sqrt(2) * 0.6745)."""


class Candidate(NamedTuple):
    """Difference at one step, which is reported once it lasts."""

    kind: str
    """One of ``TEXTS`` of the rule."""
    name: str
    """Name of the parameter, module, input or scalar."""
    value: float = 0.0
    low: float = 0.0
    """Lowest value in the healthy run."""
    high: float = 0.0
    distance: float = 0.0
    """By which the value lies outside of the healthy run's range: a logarithm."""


def of_tensors(step: Step, healthy: HealthyRun, error: float, looks: int) -> Iterator[Candidate]:
    """Yield the tensors of a step whose sizes the healthy run cannot explain.

    Args:
        step: a step with statistics.
        healthy: the healthy run, read up to twice the step.
        error: probability of a wrong difference in the whole run.
        looks: number of steps that were compared, this one included.
    """
    columns = {kind: logs_of(step, kind) for kind in (*KINDS, "input")}
    tested = sum(len(names) for names, _, _ in columns.values())
    chance = error / max(tested, 1) / (looks * (looks + 1))
    samples, lower = step.samples or UNKNOWN, _slower(step, healthy)
    for kind, (names, shapes, logs) in columns.items():
        if not names:
            continue
        if kind == "input":
            tolerance = np.zeros(len(names))  # other batches of the same data; no weights are involved
        else:
            numbers = [independent_numbers(kind, shape, samples) for shape in shapes]
            tolerance = np.array([luck(number, chance) for number in numbers])
        for place, low, high, distance in outside(
            logs,
            healthy.sizes[kind],
            names,
            step.mode_step,
            tolerance,
            lower=lower if kind in CHANGES else 0.0,
        ):
            value, low, high = size(logs[place]), size(low), size(high)
            if kind == "update" and not value:
                continue  # compared by the name of the parameter
            suffix = "" if kind == "input" else " large" if distance > 0 else " small"
            yield Candidate(f"{kind}{suffix}", names[place], value, low, high, abs(distance))
    yield from _of_means(step, healthy)


def _slower(step: Step, healthy: HealthyRun) -> float:
    """Return the logarithm of the factor by which the learning rate is lower than the highest one of the healthy run.

    Rates are compared by themselves; a lower one explains smaller updates.
    """
    rates = {n: rate for n, rate in step.scalars("metrics").items() if n.startswith(RATE) and rate > 0}
    there = [other.scalars("metrics") for other in healthy.scalars if rates]
    factors = [other[name] / rate for other in there for name, rate in rates.items() if name in other]
    return math.log(max(1.0, *factors)) if factors else 0.0


def _of_means(step: Step, healthy: HealthyRun) -> Iterator[Candidate]:
    """Yield the inputs whose means differ; the limits are in units of the input's size in the healthy run."""
    names, (means,), _, _ = step.columns("input", "mean")
    if not names:
        return
    steps, logs = healthy.sizes["input"].until(2 * step.mode_step + NEAR, names)
    if len(steps) < STEPS or not np.isfinite(logs).any(0).all():
        return
    largest = np.exp(np.max(np.where(np.isfinite(logs), logs, -np.inf), 0))
    for place, low, high, distance in outside(
        means, healthy.sizes["input mean"], names, step.mode_step, np.zeros(len(names)), largest
    ):
        yield Candidate("input mean", names[place], float(means[place]), low, high, abs(distance))


def of_scalars(step: Step, healthy: HealthyRun, error: float, looks: int) -> Iterator[Candidate]:
    """Yield the losses and norms of gradients that the healthy run cannot explain; lower losses are no fault."""
    logs, losses = logs_of_scalars(step), step.scalars("losses")
    if not logs:
        return
    names, values = tuple(logs), np.array(list(logs.values()))
    chance = error / len(names) / (looks * (looks + 1))
    # a loss is a mean of squares, or grows as one: its logarithm has twice the tolerance of a size
    scale = np.array([2.0 if name in losses else 1.0 for name in names])
    tolerance = scale * luck(step.samples or UNKNOWN, chance)
    for place, low, high, distance in outside(
        values, healthy.sizes["scalar"], names, step.mode_step, tolerance
    ):
        name, is_loss = names[place], names[place] in losses
        if is_loss and distance < 0:
            continue
        kind = "loss" if is_loss else "norm large" if distance > 0 else "norm small"
        value, low, high = size(values[place]), size(low), size(high)
        yield Candidate(kind, name, value, low, high, abs(distance))


def independent_numbers(kind: str, shape: tuple[int, ...], samples: int) -> int:
    """Return a cautious number of independent numbers in a tensor: of its dimensions, only the smallest counts."""
    if len(shape) < 2:
        return max(math.prod(shape), 1)
    if kind == "output":
        return min([size for size in (*shape[1:], samples) if size > 1], default=1)
    return max(1, min(shape[0], math.prod(shape[1:])))


def luck(numbers: int, chance: float) -> float:
    """Return the logarithm of the factor that two sizes of as many normal numbers each exceed with at most this chance.

    The ratio of two sums of n squares exceeds the square of r with at most the chance (2 / (r + 1/r))^n, by Chernoff's
    bound for the beta distribution.
    """
    exponent = -math.log(chance) / numbers
    return exponent + math.log(2) if exponent > 20 else math.acosh(math.exp(exponent))


def outside(
    values: Floats,
    sizes: Sizes,
    names: tuple[str, ...],
    number: int,
    tolerance: Floats,
    unit: Floats | float = 1.0,
    lower: float = 0.0,
) -> Iterator[tuple[int, float, float, float]]:
    """Yield place, lowest and highest healthy value, and signed distance of the values that are no noise.

    A value is noise if it is within the range of all steps up to twice its own, widened on both sides by the sum of:
    ``LEAST``; the tolerance; ``SPREADS`` standard deviations between neighbouring steps; and the range of the steps
    between half and twice its own, because a run may be ahead of the other one.

    Args:
        values: value of each name.
        sizes: values of the healthy run.
        names: names of the values.
        number: step within its mode.
        tolerance: additional tolerance of each name.
        unit: unit of ``LEAST`` for each name.
        lower: additional tolerance of low values.
    """
    steps, table = sizes.until(2 * number + NEAR, names)
    if len(steps) < STEPS:
        return
    near = steps >= number // 2 - NEAR
    known = np.isfinite(table)
    usable = (known.sum(0) >= STEPS) & known[near].any(0) & np.isfinite(values)
    low, high = _range(table, known, usable)
    least, most = _range(table[near], known[near], usable)
    room = LEAST * unit + tolerance + SPREADS * _spread(table, known) + most - least
    above = np.where(usable, values - high - room, -1.0)
    below = np.where(usable, low - values - room - lower, -1.0)
    for place in np.flatnonzero((above > 0) | (below > 0)):
        distance = values[place] - (high[place] if above[place] > 0 else low[place])
        yield int(place), float(low[place]), float(high[place]), float(distance)


def _range(table: Floats, known: NDArray[np.bool_], usable: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the lowest and the highest known value of each usable name; 0 for others."""
    low = np.where(known, table, np.inf).min(0, initial=np.inf)
    high = np.where(known, table, -np.inf).max(0, initial=-np.inf)
    return np.where(usable, low, 0.0), np.where(usable, high, 0.0)


def _spread(table: Floats, known: NDArray[np.bool_]) -> Floats:
    """Return the standard deviation of each name between neighbouring steps, from the median of the differences."""
    spread = np.zeros(table.shape[1])
    whole = known.all(0)
    if whole.any():
        spread[whole] = np.median(np.abs(np.diff(table[:, whole], axis=0)), axis=0)
    for place in np.flatnonzero(~whole & (known.sum(0) >= STEPS)):
        spread[place] = np.median(np.abs(np.diff(table[known[:, place], place])))
    return DEVIATION * spread
