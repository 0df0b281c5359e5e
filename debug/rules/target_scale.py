"""Targets of a regression whose size is far from that of the outputs.

Statistic: root mean squares of the targets and of the outputs, at the first saved step.  Targets follow from the gradient of
the output: for a mean squared error it is twice the distance over the number of elements.  That the loss is one is checked: the
mean square of the distance has to be the loss, to 1 %; of other losses the rule says nothing.
Default: targets are 20 times larger than the outputs, and than 1; or outputs are 50 times larger than targets; or the outputs
are those of sigmoid, tanh or softmax, and the root mean square of the targets is above 1.
Why: a network begins with outputs of about 1 or less, and an update of Adam moves them by little more than the learning
rate, so that large targets take thousands of steps, with huge gradients; beside tiny targets the initial noise of the
outputs is the loss.  Normalized targets have 1.  Outputs of at most 1 never reach larger targets.
False alarms: targets that are all but zero on purpose.
"""

import math

from .finding import Observation, Observations, Rule
from .history import History

NEAR = 0.01
"""Distance that is rounding."""


def detect(history: History, ratio: float = 20.0, least: float = 50.0) -> Observations:
    if history.now.mode_step:
        return
    table = history.now.columns("samples", "target", "residual")
    losses = history.now.scalars("losses").values()
    outputs = history.now.columns("output", "mean", "std")
    for name, target, residual in zip(table.names, *table.values, strict=True):
        root = "" if name == "model" else name
        if root not in outputs.names or not any(abs(residual**2 - loss) <= 0.01 * loss for loss in losses):
            continue
        place = outputs.names.index(root)
        output = math.hypot(*(float(values[place]) for values in outputs.values))
        bounded = history.now.facts.get("bounded") if target > 1 + NEAR else None
        if bounded or target > ratio * max(output, 1.0) or 0 < least * target < output:
            limit = f", as {bounded} gives at most 1" if bounded else ""
            yield Observation(
                f"the targets have a root mean square of {target:.4g}, and the outputs of {output:.4g}{limit}",
                ("output",) if not root else (f"output {name}",),
                {"target": [(history.now.number, float(target))], "output": [(history.now.number, output)]},
                f"leave {bounded} out after the last layer, or scale the targets into its range"
                if bounded
                else "",
            )


RULE = Rule(
    detect,
    "warning",
    "subtract the mean of the training targets and divide by their standard deviation, and undo it in predictions; or set "
    "the last layer's bias to the mean",
    most=1,
)
