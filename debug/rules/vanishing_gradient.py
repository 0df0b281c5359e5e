"""Gradients that vanish towards the input of a network.

Statistic: the root mean square of each weight's gradient, over the largest one of the step.  Biases and norms (fewer than
two dimensions) do not count.
Default: less than a ten-thousandth, at three successive saved steps, in the first weight of the model and all that follow it
up to the first larger one: a gradient that vanishes on its way reaches none of them.
Why: deep networks that train have ratios of 10 to 1,000; ten saturated layers have a million or more.  A weight beside the
way, such as the queries and keys of attention that is uniform at first, may have as small a gradient in a healthy training.
False alarms: an embedding of which a batch uses less than one row in a hundred million; one of several models that are
watched together, if its gradients are that much smaller.
"""

import numpy as np

from .finding import Observations, Rule
from .history import Columns, Floats, History, Mask, matrices


def detect(history: History, ratio: float = 1e-4, steps: float = 3) -> Observations:
    def vanishes(columns: Columns, mean: Floats, std: Floats) -> Mask:
        size = np.where(matrices(columns), np.sqrt(mean**2 + std**2), 0.0)  # 0: not used, or not a matrix
        largest = np.max(size[np.isfinite(size)], initial=0.0)
        is_reached = np.logical_or.accumulate(~(size < ratio * largest))
        return np.asarray((size > 0) & ~is_reached)

    text = f"gradients are smaller than {ratio:g} of the largest one: {{}}"
    return history.observe(steps, "gradient", ("mean", "std"), vanishes, text, "std")


RULE = Rule(
    detect,
    "warning",
    "use ReLU-like activations, normalization or residual connections, and an initialization that fits them",
)
