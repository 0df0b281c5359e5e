"""Updates that are too large for their weights, or too small to change them.

Statistic: root mean square of an update over that of its weight (over a sample of 4,096 elements), of weights of
two dimensions or more.  Default: more than 0.1, or less than an eighth of the last place of the weight's dtype, at
two saved steps running.
Why: trainings that work have about 1e-3; half of a last place is rounded away.  A weight that begins with
zeros (a root mean square below 1e-6) has a ratio of 1/n at its n-th update, of 2/n in a warmup, so twice that is allowed on top.
False alarms: the first steps of a warmup from zero (updates too small).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from ..store.columns import Columns
from .finding import Observation, Rule
from .history import History, matrices

LEAST = 1e-6
PLACES = 0.125


def detect(
    history: History, large: float = 0.1, places: float = PLACES, steps: float = 2
) -> Iterator[Observation]:
    if not history.now.updated:
        return
    names, (sizes,), _, _ = history.first.columns("update", "size")
    from_zero = {name for name, size in zip(names, sizes, strict=True) if size <= LEAST}

    def beyond(columns: Columns) -> NDArray[np.bool_]:
        size, ratio = columns.values
        fresh = np.array([name in from_zero for name in columns.names], dtype=bool)
        allowed = large + 4 / (1 + history.now.mode_step) * fresh
        return np.asarray(matrices(columns) & (size > LEAST) & (ratio > allowed))

    def below(columns: Columns) -> NDArray[np.bool_]:
        size, ratio = columns.values
        last = np.array([places * _eps(dtype) for dtype in columns.dtypes])
        return np.asarray(matrices(columns) & (size > LEAST) & (ratio > 0) & (ratio < last))

    for test, what in ((beyond, f"more than {large:g} of"), (below, "too small to change")):
        names = history.persistent(int(steps), "update", ("size", "ratio"), test)
        if names:
            yield Observation(
                f"the updates of {', '.join(names[:3])} are {what} their weights",
                names,
                history.evidence("update", names, "ratio"),
            )


def _eps(dtype: str) -> float:
    found = getattr(torch, dtype, torch.float32)
    return torch.finfo(found).eps if found.is_floating_point else 0.0


RULE = Rule(
    detect,
    "warning",
    "lower the learning rate where updates are large; where they are lost, raise it or keep float32 weights",
)
