"""A loss that is not lower than at the beginning.

Statistic: the means of the first and the second half of the loss over all saved steps.  If one loss is called ``loss``, the
others are taken for its parts, which need not fall; nor need the losses of several optimizers, which may work against
each other.
Default: after 40 saved steps, and again after 80, 160 and so on, the difference between the means is less than twice its
standard error, or the loss rose.
Why: a loss that can fall falls fast at first, and the standard error accounts for noise.
False alarms: a fine-tuning that begins at its optimum; rewards, and adversarial losses under one optimizer.
"""

import numpy as np

from .finding import Observation, Observations, Rule
from .history import History


def detect(history: History, steps: float = 40, errors: float = 2.0) -> Observations:
    names = history.losses() if history.optimizers < 2 else []
    for name in ["loss"] if "loss" in history.losses() else names:
        numbers, losses = history.scalar(name)
        doublings = np.log2(len(losses) / steps) if len(losses) >= steps else -1.0
        if doublings < 0 or doublings % 1 or numbers[-1] != history.now.number:
            continue
        values = np.array(losses)
        if not np.isfinite(values).all():
            continue
        first, second = values[: len(values) // 2], values[len(values) // 2 :]
        error = np.sqrt(first.var() / len(first) + second.var() / len(second))
        if first.mean() - second.mean() < errors * error or (values == values[0]).all():
            yield Observation(
                f"the mean of {name} went from {first.mean():.4g} to {second.mean():.4g} between the halves of "
                f"{len(values)} saved steps",
                (name,),
                {name: list(zip(numbers, losses, strict=True))[-100:]},
            )


RULE = Rule(
    detect,
    "warning",
    "check the learning rate, that zero_grad, backward and step are called, and that targets belong to their inputs",
)
