"""Tanh and sigmoid layers whose outputs are at their limits, where next to no gradient passes.

The model's own output is left out: a good classifier's is there.
Statistic: root mean square distance from the middle, as a share of the distance to the limit.  Default: more
than 0.97 at three saved steps running.
Why: uniform outputs have 0.58, a well used layer less; 0.97 leaves 6 % of the gradient.
False alarms: gates that have learnt to be open or shut.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..store.columns import Columns
from .finding import Observation, Rule
from .history import History

MIDDLES = {"Tanh": (0.0, 1.0), "Sigmoid": (0.5, 0.5)}
"""Class -> middle of its outputs, and their distance to the limit."""


def detect(history: History, share: float = 0.97, steps: float = 3) -> Iterator[Observation]:
    own = history.now.columns("output", "mean", "std")
    of_model = own.values[0][own.names.index("")] if "" in own.names else np.nan

    def saturated(columns: Columns) -> NDArray[np.bool_]:
        mean, std = columns.values
        ranges = [MIDDLES.get(history.type_of(name), (0.0, np.inf)) for name in columns.names]
        middle, reach = np.array(ranges, dtype=np.float64).reshape(-1, 2).T
        return np.asarray((np.sqrt((mean - middle) ** 2 + std**2) > share * reach) & (mean != of_model))

    names = history.persistent(int(steps), "output", ("mean", "std"), saturated)
    if names:
        yield Observation(
            f"the outputs of {', '.join(names[:3])} are at the limits of the activation",
            names,
            history.evidence("output", names, "std"),
        )


RULE = Rule(
    detect,
    "warning",
    "normalise what goes in, use a smaller initialisation or learning rate, or another activation",
)
