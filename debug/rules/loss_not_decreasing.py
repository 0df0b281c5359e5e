"""A loss that does not fall, or that rises.

Statistic: the rank-sum test of Mann and Whitney between the losses at the beginning (the first tenth, quarter and half) and
all later ones, which no outlier decides.  If one loss is called ``loss``, the others are taken for its parts, which need not
fall; nor need the losses of several optimizers, which may work against each other.
Default: after 40 losses, and again after 80, 160 and so on, no later part is lower by two standard deviations of the test,
while the noise is small enough that a fall by a tenth would show; or the second half is higher by four of them, and by a tenth.
Nothing is said while the learning rate still rises.
Why: a loss that can fall falls fast at first.  A loss that cannot fall seems to by chance in one of 15 tests, and one
without a trend seems to rise in one of 30,000.
False alarms: a fine-tuning that begins at its optimum; rewards, and adversarial losses under one optimizer.
"""

import math
from collections.abc import Mapping

import numpy as np

from .finding import Observation, Observations, Points, Rule
from .history import Floats, History

FELL, ROSE = 2.0, 4.0
"""Standard deviations of the rank-sum test."""
PARTS = (10, 4, 2)
"""The beginning is the first of so many parts."""


def detect(history: History, steps: float = 40, share: float = 0.1) -> Observations:
    names = history.losses() if history.optimizers < 2 else []
    for name in ["loss"] if "loss" in history.losses() else names:
        numbers, losses = history.scalar(name)
        doublings = np.log2(len(losses) / steps) if len(losses) >= steps else -1.0
        if doublings < 0 or doublings % 1 or numbers[-1] != history.now.number or warms_up(history):
            continue
        values = np.array(losses)
        if not np.isfinite(values).all():
            continue
        first, second = values[: len(values) // 2], values[len(values) // 2 :]
        before, after = float(np.median(first)), float(np.median(second))
        size = share * abs(before)
        rose = after - before > size and -rank_sum(first, second) > ROSE
        if rose or (not _fell(values) and _noise(first) + _noise(second) <= size):
            yield Observation(
                f"the median of {name} {'rose' if rose else 'went'} from {before:.4g} to {after:.4g} between the halves "
                f"of {len(values)} losses",
                (name,),
                {name: list(zip(numbers, losses, strict=True))[-100:]},
            )


def warms_up(history: History) -> bool:
    """Return whether the learning rate is higher than in the middle of the steps so far."""
    _, rates = history.scalar("learning_rate")
    return len(rates) > 1 and rates[-1] > 1.01 * rates[len(rates) // 2]


def flat(history: History, least: int) -> tuple[str, Mapping[str, Points]] | None:
    """Return a sentence about a loss whose second half is not lower than the first, and its last values.

    ``None`` if it is lower, or there are fewer than ``least`` losses.
    """
    names = [name for name in history.losses() if len(history.scalar(name)[1]) >= least]
    if not names:
        return None
    name = "loss" if "loss" in names else names[0]
    numbers, losses = history.scalar(name)
    values = np.array(losses)
    if (
        not np.isfinite(values).all()
        or rank_sum(values[: len(values) // 2], values[len(values) // 2 :]) >= FELL
    ):
        return None
    return f"{name} is {losses[-1]:.4g} after {losses[0]:.4g}", {
        name: list(zip(numbers, losses, strict=True))[-100:]
    }


def _fell(values: Floats) -> bool:
    cuts = [len(values) // part for part in PARTS]
    return any(rank_sum(values[:cut], values[cut:]) > FELL for cut in cuts)


def rank_sum(before: Floats, after: Floats) -> float:
    """Return by how many standard deviations values fell, by the rank-sum test; equal values have their middle rank."""
    n, m = len(before), len(after)
    _, places, counts = np.unique(np.concatenate((before, after)), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    ties = float((counts.astype(float) ** 3 - counts).sum()) / ((n + m) * (n + m - 1))
    variance = n * m / 12 * (n + m + 1 - ties)
    excess = float(ranks[:n].sum()) - n * (n + m + 1) / 2
    return excess / math.sqrt(variance) if variance > 0 else 0.0


def _noise(values: Floats) -> float:
    """Return two standard errors of the median, by the median distance from it."""
    return 2 * 1.253 * 1.483 * float(np.median(np.abs(values - np.median(values)))) / math.sqrt(len(values))


RULE = Rule(
    detect,
    "warning",
    "check the learning rate, that zero_grad, backward and step are called, and that targets belong to their inputs",
    scalars=True,
)
