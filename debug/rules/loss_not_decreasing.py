"""A loss that is where it began.

Statistic: mean of the loss's first and second half, over all saved steps so far.  Default: from 40 saved
steps on, asked at 40, 80, 160 and so on, the second half lies above the first by chance at least: their difference is
less than twice its standard error.
Why: a loss that falls at all falls fast at first; noise is what the standard error is for.
Where one is called ``loss`` the others are taken for its parts, which need not fall; nor need those of several
optimizers, which may work against each other.
False alarms: a fine-tuning that begins at its optimum; rewards, and adversarial losses under one optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .finding import Observation, Rule
from .history import History


def detect(history: History, steps: float = 40, errors: float = 2.0) -> Iterator[Observation]:
    names = history.losses() if history.optimizers < 2 else []
    for name in ["loss"] if "loss" in history.losses() else names:
        numbers, found = history.scalar(name)
        doublings = np.log2(len(found) / steps) if len(found) >= steps else -1.0
        if doublings < 0 or doublings % 1 or numbers[-1] != history.now.number:
            continue
        values = np.array(found)
        if not np.isfinite(values).all():
            continue
        first, second = values[: len(values) // 2], values[len(values) // 2 :]
        error = np.sqrt(first.var() / len(first) + second.var() / len(second))
        if first.mean() - second.mean() < errors * error or (values == values[0]).all():
            yield Observation(
                f"{name} went from {first.mean():.4g} to {second.mean():.4g} in {len(values)} saved steps",
                (name,),
                {name: list(zip(numbers, found, strict=True))[-100:]},
            )


RULE = Rule(
    detect,
    "warning",
    "check the learning rate, that zero_grad, backward and step are called, and that targets belong to their inputs",
)
