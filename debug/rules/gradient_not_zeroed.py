"""Gradients that are not set to zero between two updates, so that the gradients of all steps add up.

Statistic: whether a backward pass between two updates began without a gradient in the smallest parameter of the optimizer.
It is observed after each saved step, for eager models in one process.
Default: no backward pass did.
Why: after ``zero_grad`` the first backward pass begins without gradients.
False alarms: momentum that is kept in the gradients on purpose.
"""

from .finding import Observation, Observations, Rule
from .history import History


def detect(history: History) -> Observations:
    names = tuple(history.now.facts.get("not_zeroed", ()))
    if names:
        yield Observation(
            f"gradients of earlier steps were still there when those of the next step were added ({names[0]})",
            names,
        )


RULE = Rule(
    detect, "critical", "call optimizer.zero_grad() once for each optimizer.step(), before backward()"
)
