"""A loss that stays at the loss of guessing although the weights change, as if targets did not belong to their inputs.

Statistic: a cross-entropy after the first third of the losses, over the logarithm of the number of classes; and the
relative sizes of updates.
Default: after 60 losses, and again after 120, 240 and so on, between 0.85 and 1.1, with a second half that is not lower
than the first by twice the standard error, while most weights have updates between 1e-5 and 0.1 of their size.
Why: 60 updates learn a part of any task that can be learned; a bad learning rate is visible in the updates.
False alarms: tasks that begin with a long plateau; models that are too small for the task.
"""

import math

import numpy as np

from .finding import Observation, Observations, Rule
from .history import History, matrices


def detect(history: History, steps: float = 60, errors: float = 2.0) -> Observations:
    for name, classes in history.classes.items():
        numbers, losses = history.scalar(name)
        doublings = np.log2(len(losses) / steps) if len(losses) >= steps else -1.0
        if classes < 2 or doublings < 0 or doublings % 1 or numbers[-1] != history.now.number:
            continue
        values = np.array(losses[len(losses) // 3 :]) / math.log(classes)
        first, second = values[: len(values) // 2], values[len(values) // 2 :]
        error = np.sqrt(first.var() / len(first) + second.var() / len(second))
        guesses = 0.85 < second.mean() < 1.1 and first.mean() - second.mean() < errors * error
        if guesses and _learns(history):
            yield Observation(
                f"{name} is {losses[-1]:.4g} after {len(losses)} losses, although the weights change; guessing among "
                f"{classes} classes gives {math.log(classes):.4g}",
                (name,),
                {name: list(zip(numbers, losses, strict=True))[-100:]},
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
    "check that inputs and targets are shuffled together, that the loader pairs them correctly, and that the inputs "
    "say something about the targets; then the model's size and the learning rate",
    scalars=True,
)
