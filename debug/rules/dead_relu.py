"""ReLU layers whose outputs are almost all zero.

Statistic: the share of zeros in the outputs of ReLU modules; a ReLU that is called as a function is not seen.
Default: more than 98 % at three successive saved steps.
Why: half of the outputs of a new layer are zero, and sparse healthy layers reach 90 %.
False alarms: networks that are meant to be that sparse.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..store.columns import Columns
from .finding import Observation, Observations, Rule
from .history import History, some

TYPES = ("ReLU", "ReLU6")


def detect(history: History, share: float = 0.98, steps: float = 3) -> Observations:
    def dead(columns: Columns) -> NDArray[np.bool_]:
        sizes = np.array([max(1, math.prod(shape)) for shape in columns.shapes])
        relu = np.array([history.type_of(name) in TYPES for name in columns.names], dtype=bool)
        return relu & (columns.values[0] > share * sizes)

    names = history.persistent(int(steps), "output", ("zero",), dead)
    if names:
        yield Observation(
            f"more than {share:.0%} of the outputs of {some(names)} are zero",
            names,
            history.evidence("output", names, "zero"),
        )


RULE = Rule(
    detect, "warning", "lower the learning rate, check the initialization of biases, or use LeakyReLU or GELU"
)
