"""Gradients that are clipped before GradScaler unscales them, so that almost nothing is left of them.

Statistic: the norm of all gradients at an update.
Default: the norm is equal (to a thousandth) at three saved updates, below 0.002, and gives a number of one digit (1, 0.5,
...) if it is multiplied by a power of two from 256 to 2^24, as scalers use.
Why: the norm of scaled gradients is far above any limit, so that they are always clipped to the limit, and then divided by
the scale.
False alarms: gradients that are clipped to such a small norm on purpose.
"""

import math

import numpy as np

from .finding import Observation, Observations, Rule
from .history import History, Step, sizes

EQUAL = 1e-3
"""Relative difference below which numbers count as equal."""


def detect(history: History, norm: float = 2e-3, steps: float = 3) -> Observations:
    last = history.updates(int(steps))
    if last is None:
        return
    norms = [_norm(step) for step in last]
    if not 0 < norms[-1] < norm or max(norms) - min(norms) > EQUAL * norms[-1]:
        return
    limits = [norms[-1] * 2.0**power for power in range(8, 25)]
    limit = next((value for value in limits if _is_round(value)), None)
    if limit is not None:
        yield Observation(
            f"the norm of all gradients is {norms[-1]:.3g} at each update: they were clipped to {limit:.3g} while they "
            f"were multiplied by {limit / norms[-1]:.0f}",
            (),
            {"norm of the gradients": [(s.number, n) for s, n in zip(last, norms, strict=True)]},
        )


def _norm(step: Step) -> float:
    columns = step.columns("gradient", "mean", "std")
    mean, std = columns.values
    return float(np.sqrt((sizes(columns) * (mean**2 + std**2)).sum()))


def _is_round(value: float) -> bool:
    """Return whether the number has one digit."""
    digit = value / 10.0 ** math.floor(math.log10(value * (1 + EQUAL)))
    return abs(digit - round(digit)) <= EQUAL * digit


RULE = Rule(detect, "critical", "call scaler.unscale_(optimizer) before clipping, once for each update")
