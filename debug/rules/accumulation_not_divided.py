"""Gradients accumulated over several backward passes whose losses are not divided by the number of passes.

Statistic: the number of backward passes before the update after a saved step, and the factor that the cross-entropy was
multiplied by before backward.  The factor follows from the gradient that arrives at the model's output: that gradient is
the softmax minus the targets, times the factor, divided by the number of predictions.
Default: three passes or more, each with a factor of 1 (to 5 %), at two saved updates.
Why: a loss that is divided by the number of passes has a factor of one over that number.  With other losses, GradScaler,
compiled graphs or several processes the factor is unknown, and the rule says nothing.
False alarms: three or more losses that are meant to be added up, each with a backward pass of its own.
"""

from .finding import Observation, Observations, Rule
from .history import History

OFF = 0.05
"""Largest distance of the factor from 1."""


def detect(history: History, passes: float = 3, steps: float = 2) -> Observations:
    last = history.updates(int(steps))
    if last is None or not all(step.facts.get("passes", 0) >= passes for step in last):
        return
    count = last[-1].facts["passes"]
    since = [step for step in history.steps() if step.number >= last[0].number]
    points = [(s.number, float(v)) for s in since for v in s.columns("samples", "scale").values[0]]
    if points and all(abs(value - 1) <= OFF for _, value in points):
        yield Observation(
            f"{count} backward passes add up to one update, each with its whole loss: the gradient is {count} times "
            "their mean",
            (),
            {"factor of the loss": points},
        )


RULE = Rule(detect, "warning", "divide the loss by the number of accumulated batches before backward()")
