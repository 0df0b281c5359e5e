"""Gradients that are never set to zero between two updates, so that those of all steps add up.

Statistic: whether any backward pass between an update and the next began with no gradient in the smallest
parameter of the optimizer.  Asked after each saved step, of eager models in one process.
False alarms: none known; momentum that is kept in the gradients on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Observation, Rule
from .history import History


def detect(history: History) -> Iterator[Observation]:
    names = tuple(history.now.facts.get("not_zeroed", ()))
    if names:
        yield Observation(
            f"gradients of earlier steps are still there when those of the next are added ({names[0]})", names
        )


RULE = Rule(
    detect, "critical", "call optimizer.zero_grad() once for each optimizer.step(), before backward()"
)
