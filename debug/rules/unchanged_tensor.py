"""Weights that have a gradient and that training does not change.

Statistic: whether a step's update changed anything in a sample of 4,096 elements.
Default: nothing changed at three successive saved steps.  More than half of the gradient's elements are not zero, which
leaves large embeddings out; the gradient's root mean square is at least a hundred-thousandth of the largest one.
Why: the gradient of a bias before BatchNorm is only rounding error, far below this limit.
False alarms: a learning rate that is zero for some time on purpose.
"""

import numpy as np

from .finding import Observation, Observations, Rule
from .history import Columns, Floats, History, Mask, sizes, some

FAINT = 1e-5
"""Size of a gradient, relative to the largest one, below which it may be rounding."""


def detect(history: History, steps: float = 3) -> Observations:
    def is_unchanged(_: Columns, ratio: Floats) -> Mask:
        return np.asarray(ratio == 0)

    def has_gradient(columns: Columns, zeros: Floats, mean: Floats, std: Floats) -> Mask:
        size = np.sqrt(mean**2 + std**2)
        largest = np.max(size[np.isfinite(size)], initial=0.0)
        return np.asarray((zeros < 0.5 * sizes(columns)) & (size >= FAINT * largest))

    names = history.persistent(steps, "update", ("ratio",), is_unchanged)
    if any(step.marks.get("skipped") for step in history.steps()[-int(steps) :]):
        return  # GradScaler skipped an update
    with_gradient = set(history.persistent(steps, "gradient", ("zero", "mean", "std"), has_gradient))
    names = tuple(name for name in names if name in with_gradient)
    if names:
        yield Observation(
            f"weights with a gradient do not change: {some(names)}",
            names,
            history.evidence("update", names, "ratio"),
        )


RULE = Rule(
    detect,
    "critical",
    "check that optimizer.step() is called, that the learning rate is not zero, and which parameters the optimizer has",
)
