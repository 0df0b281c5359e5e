"""A loss from which no parameter gets a gradient.

Statistic: whether any parameter of an optimizer has a gradient at its update.
Default: none has one, at two successive saved steps.
Why: an update without gradients changes nothing, except by weight decay and momentum.
False alarms: none known.
"""

from .finding import Observation, Observations, Rule
from .history import History


def detect(history: History, steps: float = 2) -> Observations:
    last = history.updates(int(steps))
    if last is not None and all(step.facts.get("no_gradients") for step in last):
        yield Observation("no parameter of the optimizer has a gradient at the update", ())


RULE = Rule(
    detect,
    "critical",
    "call loss.backward() before optimizer.step(), and look for detach(), .item(), argmax or no_grad() between model and loss",
)
