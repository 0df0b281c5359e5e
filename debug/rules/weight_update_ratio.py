"""Updates that are too large for their weights, or too small to change them.

Statistic: the root mean square of an update over that of its weight (of a sample of 4,096 elements), for weights of two
dimensions or more.
Default: more than 0.1, or less than an eighth of the last place of the weight's dtype, at two successive saved steps.  The
n-th update may be 1/n larger, and 5/n if the weight began with zeros (a root mean square below 1e-6).
Too small are also updates that together move no weight by a 2,000th of its size, while the second half of 40 losses or more
is not lower than the first by two standard deviations (see `loss_not_decreasing`).
Why: trainings that work have about 1e-3, and half of a last place is rounded away.  A weight that began with zeros has a
ratio of 1/n at its n-th update, and of 2/n in a warmup; twice that is allowed.  The first updates of RMSprop and Adagrad
are up to ten learning rates, whatever the gradient.
False alarms: the first steps of a warmup from zero, whose updates are too small.
"""

import math
from typing import Any

import numpy as np
import torch

from ..store.dtypes import DTYPES
from .arrays import memory
from .finding import Observation, Observations, Rule
from .history import Columns, Floats, History, Mask, matrices
from .loss_not_decreasing import flat, warms_up

LOSSES = 40
"""Number of losses from which on they are known to fall."""
FAR = 5e-4
"""Share of its size by which a weight that learns has moved."""
LEAST = 1e-6
"""Root mean square of a weight below which it counts as zero."""


def detect(history: History, large: float = 0.1, places: float = 0.125, steps: float = 2) -> Observations:
    if not history.now.updated:
        return
    names, (first_sizes,), _, _ = history.first.columns("update", "size")
    from_zero = {name for name, size in zip(names, first_sizes, strict=True) if size <= LEAST}

    kept = memory(history, "weight_update_ratio")

    def beyond(columns: Columns, size: Floats, ratio: Floats) -> Mask:
        fresh = np.array([name in from_zero for name in columns.names], dtype=bool)
        allowed = large + (1 + 4 * fresh) / (1 + history.now.mode_step)
        return np.asarray(matrices(columns) & (size > LEAST) & (ratio > allowed))

    def below(columns: Columns, size: Floats, ratio: Floats) -> Mask:
        last = np.array([places * _eps(dtype) for dtype in columns.dtypes])
        return np.asarray(matrices(columns) & (size > LEAST) & (ratio > 0) & (ratio < last))

    for test, what in ((beyond, f"more than {large:g} of"), (below, "too small to change")):
        text = f"the updates of {{}} are {what} their weights"
        for observation in history.observe(steps, "update", ("size", "ratio"), test, text, "ratio"):
            kept["lost"] = test is below or kept.get("lost", False)
            yield observation
    moved = _moved(history, kept)
    if moved >= FAR or kept.get("lost") or warms_up(history) or (still := flat(history, LOSSES)) is None:
        return
    what, evidence = still
    yield Observation(
        f"{history.now.mode_step + 1} updates moved no weight by more than {100 * moved:.2g} % of its size, and {what}",
        (),
        evidence,
        "raise the learning rate; look for a clipping norm, a warmup or a factor of the loss that makes updates small",
    )


def _moved(history: History, kept: dict[str, Any]) -> float:
    """Return the share of its size that any weight can have moved since the first step, by the ratios of saved steps."""
    columns = history.now.columns("update", "size", "ratio")
    size, ratio = columns.values
    ratios = ratio[matrices(columns) & (size > LEAST)]
    largest = float(ratios.max()) if len(ratios) else math.inf
    number = history.now.mode_step
    moved, last, before = kept.get("moved", (0.0, -1, 0.0))
    moved += max(largest, before) * (number - last)
    kept["moved"] = moved, number, largest
    return moved if math.isfinite(moved) else math.inf


def _eps(dtype: str) -> float:
    torch_dtype = DTYPES.get(dtype, torch.float32)
    return torch.finfo(torch_dtype).eps if torch_dtype.is_floating_point else 0.0


RULE = Rule(
    detect,
    "warning",
    "lower the learning rate if updates are too large; raise it or keep float32 weights if they are lost",
)
