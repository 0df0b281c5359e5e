"""Weight decay that shrinks the weights faster than the gradients can use them, or dropout of nearly everything.

Statistic: the size of all weight matrices over their size at the first saved step; the shrinking that weight decay alone
causes, from learning rates and decays of the steps between; and the loss, by the rank-sum test of `loss_not_decreasing`.
Default: weights are below half of their size, decay alone explains more than half of that (in logarithms), and the
second half of 20 losses or more is not lower than the first by two standard deviations; or a Dropout module in training
drops nine values of ten, or more.
Why: decay has to be balanced by gradients; weights that it halves while the loss stays or rises learn nothing.  A loss
that falls seems not to by chance in fewer than one of 40 tests.
False alarms: weights that begin far too large.
"""

import math

import numpy as np

from .arrays import memory
from .finding import Observation, Observations, Rule
from .history import History, matrices, sizes, some
from .loss_not_decreasing import flat

LOSSES = 20


def detect(history: History, share: float = 0.5) -> Observations:
    if heavy := tuple(history.now.facts.get("heavy_dropout", ())):
        what = f"{some(heavy)} drops nine values of ten, or more, in training"
        yield Observation(what, heavy, advice="lower the probability of dropout: 0.1 to 0.5 is usual")
    kept, now = memory(history, "over_regularization"), history.now
    size, decays = _size(history), now.facts.get("decays", [])
    if not now.updated or not size or not decays:
        return
    number, explained = kept.get("last", (now.mode_step, 0.0))
    explained += (now.mode_step - number) * max(decay * rate for decay, rate, _ in decays)
    kept["last"] = now.mode_step, explained
    first = kept.setdefault("first", size)
    shrunk = math.log(first / size)
    if shrunk <= -math.log(share) or explained <= shrunk / 2 or (still := flat(history, LOSSES)) is None:
        return
    (what, evidence), decay = still, max(decay for decay, *_ in decays)
    yield Observation(
        f"the weights have shrunk to {100 * size / first:.3g} % of their size under a weight decay of {decay:.3g}, "
        f"and {what}",
        (),
        evidence,
    )


def _size(history: History) -> float:
    """Return the root of the summed squares of all weight matrices of the latest step."""
    columns = history.now.columns("weight", "mean", "std")
    of_matrices = matrices(columns)
    mean, std = (values[of_matrices] for values in columns.values)
    return float(np.sqrt((sizes(columns)[of_matrices] * (mean**2 + std**2)).sum()))


RULE = Rule(
    detect,
    "warning",
    "lower the weight decay (0.01 to 0.1 is usual with AdamW, 1e-4 with SGD), and leave biases and norms out of it",
    most=1,
)
