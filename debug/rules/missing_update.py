"""A training in which no optimizer updates anything.

Statistic: whether any trained parameter was written to since the saved step before.  Default: none at 16 saved steps
running.
False alarms: gradients accumulated over more than 16 steps of which each one is saved.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Observation, Rule
from .history import History


def detect(history: History, steps: float = 16) -> Iterator[Observation]:
    last = history.last(int(steps))
    if last is not None and all(step.facts.get("still") for step in last):
        yield Observation(f"no parameter was updated in {int(steps)} saved steps")


RULE = Rule(
    detect,
    "critical",
    "call optimizer.step() after loss.backward(), on the optimizer that was given to the Watch",
)
