"""Updates that are too large for their weights, or too small to change them.

Statistic: the root mean square of an update over that of its weight (of a sample of 4,096 elements), for weights of two
dimensions or more.
Default: more than 0.1, or less than an eighth of the last place of the weight's dtype, at two successive saved steps.  The
n-th update may be 1/n larger, and 5/n if the weight began with zeros (a root mean square below 1e-6).
Why: trainings that work have about 1e-3, and half of a last place is rounded away.  A weight that began with zeros has a
ratio of 1/n at its n-th update, and of 2/n in a warmup; twice that is allowed.  The first updates of RMSprop and Adagrad
are up to ten learning rates, whatever the gradient.
False alarms: the first steps of a warmup from zero, whose updates are too small.
"""

import numpy as np
import torch

from ..store.dtypes import DTYPES
from .finding import Observations, Rule
from .history import Columns, Floats, History, Mask, matrices

LEAST = 1e-6
"""Root mean square of a weight below which it counts as zero."""


def detect(history: History, large: float = 0.1, places: float = 0.125, steps: float = 2) -> Observations:
    if not history.now.updated:
        return
    names, (first_sizes,), _, _ = history.first.columns("update", "size")
    from_zero = {name for name, size in zip(names, first_sizes, strict=True) if size <= LEAST}

    def beyond(columns: Columns, size: Floats, ratio: Floats) -> Mask:
        fresh = np.array([name in from_zero for name in columns.names], dtype=bool)
        allowed = large + (1 + 4 * fresh) / (1 + history.now.mode_step)
        return np.asarray(matrices(columns) & (size > LEAST) & (ratio > allowed))

    def below(columns: Columns, size: Floats, ratio: Floats) -> Mask:
        last = np.array([places * _eps(dtype) for dtype in columns.dtypes])
        return np.asarray(matrices(columns) & (size > LEAST) & (ratio > 0) & (ratio < last))

    for test, what in ((beyond, f"more than {large:g} of"), (below, "too small to change")):
        text = f"the updates of {{}} are {what} their weights"
        yield from history.observe(steps, "update", ("size", "ratio"), test, text, "ratio")


def _eps(dtype: str) -> float:
    torch_dtype = DTYPES.get(dtype, torch.float32)
    return torch.finfo(torch_dtype).eps if torch_dtype.is_floating_point else 0.0


RULE = Rule(
    detect,
    "warning",
    "lower the learning rate if updates are too large; raise it or keep float32 weights if they are lost",
)
