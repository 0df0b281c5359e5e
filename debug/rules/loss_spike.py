"""A loss that leaps above all that it was.

Statistic: the loss over the mean of the 20 before it.  Default: more than 10 of their standard deviations and
more than twice their mean, after 20 saved steps.
False alarms: a data set whose difficulty changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .finding import Observation, Rule
from .history import History

BEFORE = 20


def detect(history: History, deviations: float = 10.0, ratio: float = 2.0) -> Iterator[Observation]:
    for name in history.losses():
        numbers, found = history.scalar(name)
        if len(found) <= BEFORE or numbers[-1] != history.now.number:
            continue
        before, now = np.array(found[-BEFORE - 1 : -1]), found[-1]
        if not np.isfinite([*before, now]).all():
            continue
        mean, std = before.mean(), before.std()
        if now > mean + deviations * std and now > ratio * mean > 0:
            yield Observation(
                f"{name} leapt from {mean:.4g} to {now:.4g}",
                (name,),
                {name: list(zip(numbers, found, strict=True))[-BEFORE - 1 :]},
            )


RULE = Rule(
    detect,
    "warning",
    "clip gradients, lower the learning rate or lengthen its warmup, and look at the batch of this step",
)
