"""A softmax over the batch instead of over the classes.

Statistic: the sums over the batch of the model's output, or of its exponential if the output is never positive.
Default: all of up to 32 sums are 1 (to 0.1 %, or 2 % in 16 bits), and those over the last dimension are not, at two successive
saved steps; the outputs lie between 0 and 1.
Why: a sum of unrelated outputs is within 0.1 % of 1 in about one of 500 cases, and two columns at two steps in one of 6e10.
False alarms: outputs that are meant to share the batch among them, such as an attention over samples.
"""

import numpy as np

from .finding import Observation, Observations, Rule
from .history import Columns, Floats, History, Mask


def detect(history: History, error: float = 1e-3, steps: float = 2) -> Observations:
    half = any("16" in dtype for dtype in history.now.columns("output", "mean").dtypes)

    def over_batch(_: Columns, distance: Floats) -> Mask:
        return np.asarray(distance <= (20 * error if half else error))

    for name in history.persistent(steps, "samples", ("over_batch",), over_batch):
        distance = history.points("samples", name, "over_batch")
        yield Observation(
            f"the outputs of {'the model' if name == 'model' else name} sum up to 1 over the batch (to "
            f"{distance[-1][1]:.2g}) and not over the last dimension",
            (f"output {name}",) if name != "model" else ("output",),
            {"over_batch": distance},
        )


RULE = Rule(
    detect,
    "critical",
    "pass dim=-1 (or dim=1 for images) to softmax, or leave it out before cross_entropy, which applies it itself",
)
