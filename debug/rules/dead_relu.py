"""ReLU layers whose outputs are almost all zero.

Statistic: the share of zeros in the outputs of ReLU modules; a ReLU that is called as a function is not seen.
Default: more than 98 % at three successive saved steps.
Why: half of the outputs of a new layer are zero, and sparse healthy layers reach 90 %.
False alarms: networks that are meant to be that sparse.
"""

import numpy as np

from .finding import Observations, Rule
from .history import Columns, Floats, History, Mask, sizes

TYPES = ("ReLU", "ReLU6")


def detect(history: History, share: float = 0.98, steps: float = 3) -> Observations:
    def dead(columns: Columns, zeros: Floats) -> Mask:
        relu = np.array([history.type_of(name) in TYPES for name in columns.names], dtype=bool)
        return relu & (zeros > share * sizes(columns))

    text = f"more than {share:.0%} of the outputs of {{}} are zero"
    return history.observe(steps, "output", ("zero",), dead, text, "zero")


RULE = Rule(
    detect, "warning", "lower the learning rate, check the initialization of biases, or use LeakyReLU or GELU"
)
