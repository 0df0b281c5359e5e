"""A model with the same output for every sample of a batch, although the samples differ.

Statistic: the largest distance between the outputs of a batch (of 32 samples and 32 elements of each dimension at most), in
last places of float32, or of a finer dtype, at the largest output.
Default: at most four, at four successive saved steps.
Why: rounding causes less, and any dependence on the input causes more.  Dropout can hide the fault in training mode.
False alarms: a first output that is no prediction, such as a table that all samples share.
"""

import numpy as np

from .finding import Observation, Observations, Rule
from .history import Columns, Floats, History, Mask


def detect(history: History, places: float = 4.0, steps: float = 4) -> Observations:
    def alike(_: Columns, spread: Floats, varied: Floats) -> Mask:
        return np.asarray((varied == 1) & (spread <= places))

    for name in history.persistent(steps, "samples", ("spread", "varied"), alike):
        yield Observation(
            f"the output of {'the model' if name == 'model' else name} is the same for every sample of a batch",
            (f"output {name}",) if name != "model" else ("output",),
            {"spread": history.points("samples", name, "spread")},
        )


RULE = Rule(
    detect,
    "warning",
    "check that forward() uses its input, that features are not lost between the layers (dead activations, a pooling or "
    "normalization over the batch or over everything), and that the targets belong to their inputs",
)
