"""Gradients that are nothing beside those of the layer that learns most.

Statistic: root mean square of each weight's gradient, over the largest one at the same step.  Default: a
ten-thousandth, at three saved steps running.  Biases and norms (fewer than two dimensions) are left out.
Why: depths that train have ratios of 10 to 1,000; a chain of ten saturated layers has 1e-6 and less.
False alarms: an embedding of which a batch uses less than one row in a hundred million; of several models that are
watched together, one whose gradients are that much smaller.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..store.columns import Columns
from .finding import Observation, Rule
from .history import History, matrices


def detect(history: History, ratio: float = 1e-4, steps: float = 3) -> Iterator[Observation]:
    def vanishes(columns: Columns) -> NDArray[np.bool_]:
        matrix = matrices(columns)
        size = np.sqrt(columns.values[0] ** 2 + columns.values[1] ** 2)
        largest = np.max(size[matrix & np.isfinite(size)], initial=0.0)
        return np.asarray(matrix & (size > 0) & (size < ratio * largest))

    names = history.persistent(int(steps), "gradient", ("mean", "std"), vanishes)
    if names:
        yield Observation(
            f"the gradient of {len(names)} weight{'s' * (len(names) > 1)} is less than {ratio:g} of the largest one",
            names,
            history.evidence("gradient", names, "std"),
        )


RULE = Rule(
    detect,
    "warning",
    "use ReLU-like activations, normalisation or residual connections, and an initialisation that fits them",
)
