"""A validation loss that rises while the training loss falls.

Statistic: the losses of mode ``eval``, and the training losses since.  An evaluation of several steps counts by its mean, and
only if all its steps are saved.
Default: three successive evaluations are 5 % above the lowest one, and each is above the one before, while the training loss
is lower than at the lowest evaluation.
Why: three rising evaluations are rarely noise.
False alarms: validation on few samples.
"""

import itertools

import numpy as np

from .finding import Observation, Observations, Rule
from .history import History


def detect(history: History, ratio: float = 0.05, patience: float = 3) -> Observations:
    trained, losses = history.scalar(next(iter(history.losses()), ""))
    for name, rounds in history.evaluations():
        if len(rounds) <= patience:
            continue
        values = [value for _, value in rounds]
        least, last = int(np.argmin(values)), values[-int(patience) :]
        is_above = last[0] > values[least] + ratio * abs(values[least])
        is_rising = all(a < b for a, b in itertools.pairwise(last))
        if least >= len(values) - patience or not is_rising or not is_above:
            continue
        at, now = rounds[least][0], rounds[-1][0]
        then = [v for s, v in zip(trained, losses, strict=True) if s <= at][-10:]
        since = [v for s, v in zip(trained, losses, strict=True) if s <= now][-10:]
        if then and np.mean(since) < np.mean(then):
            yield Observation(
                f"{name} in evaluation rose from {values[least]:.4g} at step {at} to {values[-1]:.4g}, "
                f"while the training loss fell from {np.mean(then):.4g} to {np.mean(since):.4g}",
                (name,),
                {f"{name} in evaluation": rounds[-100:]},
            )


RULE = Rule(
    detect,
    "warning",
    "stop at the lowest validation loss, or use more data, augmentation, weight decay or dropout",
    mode="eval",
    scalars=True,
)
