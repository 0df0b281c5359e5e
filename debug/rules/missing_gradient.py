"""A parameter that an optimizer holds and that gets no gradient.

Statistic: whether the parameter has a gradient at each update.
Default: it has no gradient at any of the last saved updates, which are three to twenty.
Why: such a parameter keeps its first value.
False alarms: experts or branches that are used so seldom.
"""

from .finding import Observation, Observations, Rule
from .history import History, some


def detect(history: History, steps: float = 3) -> Observations:
    last = [step for step in history.steps() if step.updated]
    if len(last) < steps or not history.now.updated:
        return
    missing = [step.facts.get("no_gradient", ()) for step in last]
    names = tuple(name for name in missing[0] if all(name in other for other in missing[1:]))
    if names:
        yield Observation(f"no gradient at {len(last)} updates: {some(names)}", names)


RULE = Rule(
    detect,
    "warning",
    "look for a detach(), a no_grad(), an output that the loss does not use, or a layer that forward() leaves out",
)
