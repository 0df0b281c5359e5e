"""Weights, gradients or outputs that are zero throughout.

Statistic: minimum and maximum.  Default: both zero at three saved steps running (a warmup begins with a rate of zero); of weights and gradients only
those of two dimensions or more, for biases and scales may begin at zero.
False alarms: a branch that is switched off for some steps on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..store.columns import Columns
from .finding import Observation, Rule
from .history import History, matrices


def zero(columns: Columns) -> NDArray[np.bool_]:
    low, high = columns.values
    return np.asarray(matrices(columns) & (low == 0) & (high == 0))


def detect(history: History, steps: float = 3) -> Iterator[Observation]:
    for kind in ("weight", "gradient", "output"):
        names = history.persistent(int(steps), kind, ("min", "max"), zero)
        if names:
            yield Observation(
                f"the {kind} of {', '.join(names[:3])} is zero throughout",
                tuple(f"{kind} {name}".strip() for name in names),
                history.evidence(kind, names, "max"),
            )


RULE = Rule(
    detect,
    "warning",
    "look for dead activations before it, a detach(), an initialisation with zeros on both sides of a product, "
    "or a loss that does not use it",
)
