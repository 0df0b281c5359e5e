"""Tanh and sigmoid layers whose outputs are at their limits, where almost no gradient passes.

Statistic: the root mean square distance of the outputs from the middle, as a share of the distance to the limit.  The
model's own output does not count, because the output of a good classifier is at the limits.
Default: more than 0.97 at three successive saved steps.
Why: uniformly distributed outputs have 0.58; 0.97 leaves 6 % of the gradient.
False alarms: gates that have learned to be open or shut.
"""

import numpy as np

from .finding import Observations, Rule
from .history import Columns, Floats, History, Mask

MIDDLES = {"Tanh": (0.0, 1.0), "Sigmoid": (0.5, 0.5)}
"""Class -> middle of its outputs, and distance from the middle to the limits."""


def detect(history: History, share: float = 0.97, steps: float = 3) -> Observations:
    own = history.now.columns("output", "mean", "std")
    of_model = own.values[0][own.names.index("")] if "" in own.names else np.nan

    def saturated(columns: Columns, mean: Floats, std: Floats) -> Mask:
        ranges = [MIDDLES.get(history.type_of(name), (0.0, np.inf)) for name in columns.names]
        middle, reach = np.array(ranges, dtype=np.float64).reshape(-1, 2).T
        return np.asarray((np.sqrt((mean - middle) ** 2 + std**2) > share * reach) & (mean != of_model))

    text = "the outputs of {} are at the limits of the activation"
    return history.observe(steps, "output", ("mean", "std"), saturated, text, "std")


RULE = Rule(
    detect,
    "warning",
    "normalize the input, use a smaller initialization or learning rate, or another activation",
)
