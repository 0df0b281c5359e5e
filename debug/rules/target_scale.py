"""Targets of a regression whose size is far from that of the outputs, or that outputs cannot reach.

Statistic: root mean squares of the targets and of the outputs, and the range of the targets, at the first saved step.
Targets follow from the gradient of the output: for a mean squared error it is twice the distance over the number of
elements.  That the loss is one is checked: the mean square of the distance has to be the loss, to 1 %; of other losses the
rule says nothing.
Default: targets are 20 times larger than the outputs, and than 1; or outputs are 50 times larger than targets; or a target
is out of the range of the operation that ends the model, such as a sigmoid's from 0 to 1, by more than 5 %.
Why: a network begins with outputs of about 1 or less, and an update of Adam moves them by little more than the learning
rate, so that large targets take thousands of steps, with huge gradients; beside tiny targets the initial noise of the
outputs is the loss.  Normalized targets have 1.  Standardized targets are negative for every other
sample, which sigmoid and ReLU never are.
False alarms: targets that are all but zero on purpose.
"""

import math

from .finding import Observation, Observations, Rule
from .history import History

RANGES = {
    "sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "relu": (0.0, math.inf),
    "softplus": (0.0, math.inf),
    "exp": (0.0, math.inf),
}
"""Operation -> the smallest and the largest result."""
BEYOND = 0.05
"""Distance from the range, in units of it, or of 1, that noise or interpolation gives."""


def detect(history: History, ratio: float = 20.0, least: float = 50.0) -> Observations:
    now = history.now
    if now.mode_step:
        return
    table = now.columns("samples", "target", "residual", "low", "high")
    losses = now.scalars("losses").values()
    outputs = now.columns("output", "mean", "std")
    last = now.facts.get("bounded", "")
    for name, target, residual, low, high in zip(table.names, *table.values, strict=True):
        root = "" if name == "model" else name
        if root not in outputs.names or not any(abs(residual**2 - loss) <= 0.01 * loss for loss in losses):
            continue
        place = outputs.names.index(root)
        output = math.hypot(*(float(values[place]) for values in outputs.values))
        tensors = ("output",) if not root else (f"output {name}",)
        evidence = {"target": [(now.number, float(target))], "output": [(now.number, output)]}
        if target > ratio * max(output, 1.0) or 0 < least * target < output:
            what = f"the targets have a root mean square of {target:.4g}, and the outputs of {output:.4g}"
            yield Observation(what, tensors, evidence)
        elif last in RANGES and not _reaches(RANGES[last], low, high):
            ends = " to ".join(f"{end:g}" for end in RANGES[last] if math.isfinite(end))
            given = f"from {ends}" if " to " in ends else f"above {ends}"
            what = f"the targets are from {low:.4g} to {high:.4g}, and the outputs those of {last}, {given}"
            advice = f"leave {last} out after the last layer, or scale the targets into its range"
            yield Observation(what, tensors, evidence, advice)


def _reaches(limits: tuple[float, float], low: float, high: float) -> bool:
    smallest, largest = limits
    beyond = BEYOND * (largest - smallest if math.isfinite(largest) else 1.0)
    return low >= smallest - beyond and high <= largest + beyond


RULE = Rule(
    detect,
    "warning",
    "subtract the mean of the training targets and divide by their standard deviation, and undo it in predictions; or set "
    "the last layer's bias to the mean",
    most=1,
)
