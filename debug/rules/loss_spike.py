"""A loss that leaps far above the losses before it.

Statistic: the loss above the mean of the 20 losses before it.  If the batch has fewer samples than the largest of the last
steps, the difference counts by its share of samples, as if the missing samples had the usual loss.
Default: more than 10 standard deviations of these 20 losses above their mean, more than twice the mean, and more than
three times the largest rise from one loss to the next among the 200 before.
Why: noise rarely exceeds four standard deviations, and noise with outliers has shown some of them before.  In a short
last batch, one hard sample changes the mean a lot.
False alarms: a data set whose difficulty changes; the first outlier of a reward.
"""

import math

import numpy as np

from .finding import Observation, Observations, Rule
from .history import History

BEFORE, RISES = 20, 200
"""Number of losses that the present one is compared with, and number of those whose rises are."""


def detect(
    history: History, deviations: float = 10.0, ratio: float = 2.0, rises: float = 3.0
) -> Observations:
    for name in history.losses():
        numbers, losses = history.scalar(name)
        if len(losses) <= BEFORE or numbers[-1] != history.now.number:
            continue
        mean, now = sum(losses[-BEFORE - 1 : -1]) / BEFORE, losses[-1]
        if not now > ratio * mean > 0:  # nearly always, and quick to see
            continue
        share = _share_of_samples(history)
        leap = math.nan if share is None else share * (now - mean)
        before = np.array(losses[-RISES - 1 : -1])
        is_far = leap > deviations * before[-BEFORE:].std() and mean + leap > ratio * mean
        if math.isfinite(now) and is_far and leap > rises * np.nanmax(np.diff(before)):
            yield Observation(
                f"{name} leapt from {mean:.4g} to {now:.4g}",
                (name,),
                {name: list(zip(numbers, losses, strict=True))[-BEFORE - 1 :]},
            )


def _share_of_samples(history: History) -> float | None:
    """Return the batch's number of samples over the largest one of the last steps, no more than 1.

    The number of samples is known from the model's input, which a compiled step does not show.

    Returns:
        The share; 1 if the input is not seen; ``None`` if only this step's input is seen: the step did not run like the
        others, as a compiled step runs eagerly for a last, shorter batch, and cannot be compared with them.
    """
    *before, now = history.samples
    if now is None:
        return 1.0
    largest = max((samples or 0 for samples in before), default=0)
    return min(1.0, now / largest) if largest else None


RULE = Rule(
    detect,
    "warning",
    "clip gradients, lower the learning rate or lengthen its warmup, and look at the batch of this step",
    scalars=True,
)
