"""A training in which no optimizer updates anything.

Statistic: whether any trained parameter was written to since the previous saved step.
Default: none was, at 16 successive saved steps.
Why: accumulation over more steps than that is rare.
False alarms: gradients that are accumulated over more than 16 steps, all of which are saved.
"""

from .finding import Observation, Observations, Rule
from .history import History


def detect(history: History, steps: float = 16) -> Observations:
    last = history.last(int(steps))
    if last is not None and all(step.facts.get("still") for step in last):
        yield Observation(f"no parameter was updated in {int(steps)} saved steps")


RULE = Rule(
    detect,
    "critical",
    "call optimizer.step() after loss.backward(), on the optimizer that the Watch was made with",
)
