"""Parameters that an optimizer holds and that are frozen.

Statistic: the parameters that the optimizer holds, and those of them that require no gradient.
Default: any, at the first update.
Why: an optimizer that is given parameters is meant to train them; fine-tuning usually gives it the others alone.
False alarms: layers that are frozen on purpose, or until a later epoch.
"""

from .finding import Observation, Observations, Rule
from .history import History, some


def detect(history: History) -> Observations:
    names = tuple(history.now.facts.get("frozen", ()))
    if names:
        share = history.now.facts.get("frozen_share", 0.0)
        yield Observation(f"the optimizer holds frozen parameters, {share:.0%} of all: {some(names)}", names)


RULE = Rule(
    detect,
    "info",
    "set requires_grad=True if these layers are meant to learn; otherwise give the optimizer the trained parameters alone",
    most=1,
)
