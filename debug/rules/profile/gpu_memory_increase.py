"""Memory of a device that grows steadily.

Statistic: the largest memory in use in each tenth of the last 600 samples since the first step.
Default: each tenth is above the one before, and the growth in all is more than 5 % of the device's memory (the 5 % of
SageMaker Debugger, whose windows have 10 samples).
Why: a tenth is as long as an epoch of a small data set, so that the peaks of epochs are not taken for growth.
False alarms: sequences that get longer; an evaluation that begins.
"""

import numpy as np

from ..finding import Observation, Observations, Rule
from .series import Series, finite

PARTS = 10
"""Parts that the samples are divided into."""


def detect(series: Series, increase: float = 5.0, samples: float = 600.0) -> Observations:
    recent = series.recent(samples)
    if len(recent) < PARTS:
        return
    for name in series.devices():
        total = series.header["totals"].get(f"{name}_memory", 0.0)
        parts = [finite(part) for part in np.array_split(recent[f"{name}_memory"], PARTS)]
        if not all(map(len, parts)):  # the device does not report its memory
            continue
        most = np.array([part.max() for part in parts])
        if total and (np.diff(most) > 0).all() and 100 * (most[-1] - most[0]) > increase * total:
            yield Observation(
                f"memory in use of {name} grew from {most[0] / 2**30:.3g} to {most[-1] / 2**30:.3g} GiB "
                f"in {samples * series.header['interval'] / 60:.3g} minutes",
                (name,),
                series.points({f"{name}, bytes": recent[f"{name}_memory"]}, recent),
            )


RULE = Rule(
    detect,
    "warning",
    "do not keep tensors with their autograd graph from step to step: add up losses by loss.item() or loss.detach()",
    source="profile",
)
