"""A cross-entropy that begins far above the loss of guessing, or below zero.

Statistic: the first loss over the logarithm of the number of classes.  ``step`` must get a cross-entropy with its autograd
graph; the rule says nothing about one that is multiplied or that something is added to.
Default: more than 1.5 at the first step of a run, or a negative loss.
Why: a network that knows nothing and gives equal probabilities has exactly the logarithm; a network that is certain because
of its initialization alone has more.
False alarms: a weighted sum of several losses, a sum over samples.
"""

import math

from .finding import Observation, Observations, Rule
from .history import History


def detect(history: History, ratio: float = 1.5) -> Observations:
    classes_of = history.now.facts.get("classes", {})
    if history.now.mode_step:
        return
    for name, value in history.now.scalars("losses").items():
        classes = classes_of.get(name, 0)
        if classes < 2:
            continue
        if value < 0:
            yield Observation(f"{name} is a cross-entropy and negative: {value:.4g}", (name,))
        if value > ratio * math.log(classes):
            yield Observation(
                f"{name} begins at {value:.4g}; guessing among {classes} classes gives {math.log(classes):.4g}",
                (name,),
                {name: [(history.now.number, value)]},
            )


RULE = Rule(
    detect,
    "warning",
    "make the last layer's initial weights smaller, and check the sign, the targets, the reduction and the size of the input",
)
