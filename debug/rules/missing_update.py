"""A training in which no optimizer updates anything.

Statistic: whether any trained parameter was written to since the previous saved step.
Default: none was, at three or more successive saved steps of 16 steps or more in all.
Why: accumulation over more steps than that is rare.
False alarms: gradients that are accumulated over more than 16 steps.
"""

import itertools

from .finding import Observation, Observations, Rule
from .history import History

LEAST = 3
"""Saved steps."""


def detect(history: History, steps: float = 16) -> Observations:
    still = list(itertools.takewhile(lambda step: step.facts.get("still"), reversed(history.steps())))
    if len(still) >= LEAST and (count := still[0].mode_step - still[-1].mode_step + 1) >= steps:
        yield Observation(f"no parameter was updated in {count} steps, of which {len(still)} were saved")


RULE = Rule(
    detect,
    "critical",
    "call optimizer.step() after loss.backward(), on the optimizer that the Watch was made with",
)
