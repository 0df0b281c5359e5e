"""A loss that stays where guessing is, though everything learns: targets that do not belong to their inputs, perhaps.

Statistic: the loss of a cross-entropy over all saved steps so far, after the first third of them, over the logarithm
of the number of classes; sizes of updates.  Default: asked at 60, 120, 240 and so on, between 0.85 and 1.1, the second
half of it no lower than the first by chance (twice the standard error), while most weights have updates between
1e-5 and 0.1 of them.
Why: what can be learnt at all is learnt a little in 60 steps, and rates that are far off show in the updates.
False alarms: tasks that begin with a long plateau; models that are too small for the task.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from .finding import Observation, Rule
from .history import History, matrices


def detect(history: History, steps: float = 60, errors: float = 2.0) -> Iterator[Observation]:
    for name, classes in history.classes.items():
        numbers, found = history.scalar(name)
        doublings = np.log2(len(found) / steps) if len(found) >= steps else -1.0
        if classes < 2 or doublings < 0 or doublings % 1 or numbers[-1] != history.now.number:
            continue
        values = np.array(found[len(found) // 3 :]) / math.log(classes)
        first, second = values[: len(values) // 2], values[len(values) // 2 :]
        error = np.sqrt(first.var() / len(first) + second.var() / len(second))
        guesses = 0.85 < second.mean() < 1.1 and first.mean() - second.mean() < errors * error
        if guesses and _learns(history):
            yield Observation(
                f"{name} stays at {found[-1]:.4g} in {len(found)} saved steps, guessing among {classes} classes has "
                f"{math.log(classes):.4g}, and the weights do change",
                (name,),
                {name: list(zip(numbers, found, strict=True))[-100:]},
            )


def _learns(history: History) -> bool:
    last = [step for step in history.steps() if step.updated]
    if not last:
        return False
    columns = last[-1].columns("update", "ratio")
    ratios = columns.values[0][matrices(columns)]
    return bool(len(ratios)) and bool(((ratios > 1e-5) & (ratios < 0.1)).mean() > 0.5)


RULE = Rule(
    detect,
    "info",
    "check that inputs and targets are shuffled together, that the loader pairs them rightly, and that the inputs "
    "say something about the targets; then the model's size and the learning rate",
)
