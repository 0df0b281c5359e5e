"""Weights with a gradient that training does not change.

Statistic: whether a step's update changed anything, by a sample of 4,096 elements.  Default: nothing at three saved
steps running, with a gradient most of which is not zero (that of a large embedding is) and whose root mean square is a
hundred-thousandth of the largest one's at least (what a bias before BatchNorm gets is rounding).
False alarms: a learning rate that is zero for some time on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..store.columns import Columns
from .finding import Observation, Rule
from .history import History

FAINT = 1e-5


def detect(history: History, steps: float = 3) -> Iterator[Observation]:
    def still(columns: Columns) -> NDArray[np.bool_]:
        return np.asarray(columns.values[0] == 0)

    def pushed(columns: Columns) -> NDArray[np.bool_]:
        sizes = np.array([math.prod(shape) for shape in columns.shapes])
        size = np.sqrt(columns.values[1] ** 2 + columns.values[2] ** 2)
        largest = np.max(size[np.isfinite(size)], initial=0.0)
        return np.asarray((columns.values[0] < 0.5 * sizes) & (size >= FAINT * largest))

    names = history.persistent(int(steps), "update", ("ratio",), still)
    if any(step.marks.get("skipped") for step in history.steps()[-int(steps) :]):
        return  # by GradScaler
    moved = set(history.persistent(int(steps), "gradient", ("zero", "mean", "std"), pushed))
    names = tuple(name for name in names if name in moved)
    if names:
        yield Observation(
            f"{len(names)} weights with a gradient stay as they are, among them {', '.join(names[:3])}",
            names,
            history.evidence("update", names, "ratio"),
        )


RULE = Rule(
    detect,
    "critical",
    "check that optimizer.step() is called, that the learning rate is not zero, and which parameters the optimizer has",
)
