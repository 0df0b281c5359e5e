"""Gradients of several backward passes that are added up for one update, of losses that are not divided by their number.

Statistic: backward passes until the update after a saved step, and what the cross-entropy was multiplied by before
backward, from the gradient that comes into the model's output: it is softmax less the targets, times that number over
their count.  Default: three passes, each of them with 1 (to 5 %), at two saved updates.
Why: with losses divided by their number it is one over that.  Other losses, GradScaler, graphs and several processes
hide it.
False alarms: three or more losses that are meant to be added up, each with a backward pass of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Observation, Rule
from .history import History

OFF = 0.05


def detect(history: History, passes: float = 3, steps: float = 2) -> Iterator[Observation]:
    last = history.updates(int(steps))
    if last is None or not all(step.facts.get("passes", 0) >= passes for step in last):
        return
    count = last[-1].facts["passes"]
    since = [step for step in history.steps() if step.number >= last[0].number]
    scales = [float(value) for step in since for value in step.columns("samples", "scale").values[0]]
    if scales and all(abs(value - 1) <= OFF for value in scales):
        points = [(s.number, float(v)) for s in since for v in s.columns("samples", "scale").values[0]]
        yield Observation(
            f"{count} backward passes add up to one update, each with the whole of its loss: "
            f"the gradient is {count} times their mean",
            (),
            {"factor of the loss": points},
        )


RULE = Rule(detect, "warning", "divide the loss by the number of accumulated batches before backward()")
