"""A device that is hardly used, or used in bursts.

Statistic: percentiles of a device's utilization over the last 500 samples since the first step.
Default: the 95th is below 70 % and the 5th is below 10 % (the defaults of SageMaker Debugger).
Why: a device that is kept busy is rarely below 10 %.
False alarms: long evaluations or checkpoints on the processor.
"""

import numpy as np

from ..finding import Observation, Observations, Rule
from .series import Series


def detect(series: Series, p95: float = 70.0, p5: float = 10.0, samples: float = 500.0) -> Observations:
    recent = series.recent(samples)
    for name, values in series.utilization(recent).items():
        low, high = np.percentile(values, [5, 95])
        if high < p95 and low < p5:
            yield Observation(
                f"utilization of {name} is below {low:.0f} % in 5 % of the samples and below {high:.0f} % in 95 %",
                (name,),
                series.points({f"{name}, %": recent[name]}, recent),
            )


RULE = Rule(
    detect,
    "warning",
    "look at the phases of a step: a slow loader needs more workers, a short forward pass needs a larger "
    "batch or a compiled step (loopwise.compile.TrainStep)",
    source="profile",
)
