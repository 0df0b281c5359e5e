"""Weights, gradients or outputs whose elements are all zero.

Statistic: minimum and maximum of the tensor.  Of weights and gradients, only those of two dimensions or more count, because
biases and scales may begin at zero.
Default: both are zero at three successive saved steps.
Why: a warmup begins with a rate of zero, so that one step is not enough.
False alarms: a branch that is switched off for some steps on purpose.
"""

import numpy as np

from .finding import Observation, Observations, Rule
from .history import Columns, Floats, History, Mask, matrices, some


def zero(columns: Columns, low: Floats, high: Floats) -> Mask:
    return np.asarray(matrices(columns) & (low == 0) & (high == 0))


def detect(history: History, steps: float = 3) -> Observations:
    for kind in ("weight", "gradient", "output"):
        names = history.persistent(steps, kind, ("min", "max"), zero)
        if names:
            yield Observation(
                f"all elements of the {kind} of {some(names)} are zero",
                tuple(f"{kind} {name}".strip() for name in names),
                history.evidence(kind, names, "max"),
            )


RULE = Rule(
    detect,
    "warning",
    "look for dead activations before it, a detach(), an initialization with zeros on both sides of a product, "
    "or a loss that does not use it",
)
