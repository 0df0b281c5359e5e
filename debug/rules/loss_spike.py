"""A loss that leaps far above the losses before it.

Statistic: the loss above the mean of the 20 saved losses before it.  If the batch has fewer samples than the largest of the
last steps, the difference counts by its share of samples, as if the missing samples had the usual loss.
Default: more than 10 standard deviations of these 20 losses above their mean, and more than twice the mean.
Why: noise rarely exceeds four standard deviations.  In a short last batch, one hard sample changes the mean a lot.
False alarms: a data set whose difficulty changes.
"""

import numpy as np

from .finding import Observation, Observations, Rule
from .history import History

BEFORE = 20
"""Number of losses that the present one is compared with."""


def detect(history: History, deviations: float = 10.0, ratio: float = 2.0) -> Observations:
    share = _share_of_samples(history)
    for name in history.losses():
        numbers, losses = history.scalar(name)
        if share is None or len(losses) <= BEFORE or numbers[-1] != history.now.number:
            continue
        before, now = np.array(losses[-BEFORE - 1 : -1]), losses[-1]
        if not np.isfinite([*before, now]).all():
            continue
        mean, std = before.mean(), before.std()
        leap = share * (now - mean)
        if leap > deviations * std and mean + leap > ratio * mean > 0:
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
    *before, now = history.steps()
    if now.samples is None:
        return 1.0
    largest = max((step.samples or 0 for step in before), default=0)
    return min(1.0, now.samples / largest) if largest else None


RULE = Rule(
    detect,
    "warning",
    "clip gradients, lower the learning rate or lengthen its warmup, and look at the batch of this step",
)
