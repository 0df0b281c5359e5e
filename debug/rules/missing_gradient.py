"""A parameter that an optimizer holds and that gets no gradient.

Statistic: whether ``grad`` is there at the update.  Default: missing at all of the last saved updates, twenty at most
and three at least.
False alarms: experts or branches that are used so seldom.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Observation, Rule
from .history import History, some


def detect(history: History, steps: float = 3) -> Iterator[Observation]:
    last = [step for step in history.steps() if step.updated]
    if len(last) < steps or not history.now.updated:
        return
    each = [step.facts.get("no_gradient", ()) for step in last]
    names = tuple(name for name in each[0] if all(name in other for other in each[1:]))
    if names:
        shown = some(names)
        yield Observation(f"{shown} never gets a gradient", names)


RULE = Rule(
    detect,
    "warning",
    "look for a detach(), a no_grad(), an output that the loss does not use, or a layer that forward() leaves out",
)
