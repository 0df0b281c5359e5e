"""Weights that have a gradient and that training does not change.

Statistic: whether a step's update changed anything in a sample of 4,096 elements.
Default: nothing changed at three successive saved steps.  Most of the gradient is not zero (most of a large embedding's is),
and its root mean square is at least a hundred-thousandth of the largest one.
Why: the gradient of a bias before BatchNorm is rounding and far smaller than that.
False alarms: a learning rate that is zero for some time on purpose.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..store.columns import Columns
from .finding import Observation, Observations, Rule
from .history import History, some

FAINT = 1e-5
"""Size of a gradient, relative to the largest one, below which it may be rounding."""


def detect(history: History, steps: float = 3) -> Observations:
    def still(columns: Columns) -> NDArray[np.bool_]:
        return np.asarray(columns.values[0] == 0)

    def pushed(columns: Columns) -> NDArray[np.bool_]:
        sizes = np.array([math.prod(shape) for shape in columns.shapes])
        size = np.sqrt(columns.values[1] ** 2 + columns.values[2] ** 2)
        largest = np.max(size[np.isfinite(size)], initial=0.0)
        return np.asarray((columns.values[0] < 0.5 * sizes) & (size >= FAINT * largest))

    names = history.persistent(int(steps), "update", ("ratio",), still)
    if any(step.marks.get("skipped") for step in history.steps()[-int(steps) :]):
        return  # GradScaler skipped an update
    moved = set(history.persistent(int(steps), "gradient", ("zero", "mean", "std"), pushed))
    names = tuple(name for name in names if name in moved)
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
