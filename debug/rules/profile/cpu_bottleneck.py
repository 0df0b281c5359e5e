"""A device that is idle while a processor core is busy.

Statistic: the share of the last 500 samples since the first step in which a device of the training is below 10 % of
utilization and a core of the machine is above 90 %.
Default: more than half of the samples.  SageMaker Debugger counts each core separately; this rule the busiest core.
Why: one Python thread can keep only one core busy.
False alarms: other programs on the machine.
"""

import numpy as np

from ..finding import Observation, Observations, Rule
from .series import Series


def detect(
    series: Series, gpu: float = 10.0, cpu: float = 90.0, share: float = 0.5, samples: float = 500.0
) -> Observations:
    recent = series.recent(samples)
    cores = [recent[name] for name in recent.columns if name.removeprefix("cpu").isdecimal()]
    if not len(recent) or not cores:
        return
    busiest = np.max(cores, axis=0)
    for name in series.devices():
        part = ((recent[name] < gpu) & (busiest > cpu)).mean()
        if part > share:
            yield Observation(
                f"in {part:.0%} of the samples {name} is below {gpu:g} % and a core above {cpu:g} %",
                (name,),
                series.points({f"{name}, %": recent[name], "busiest core, %": busiest}, recent),
            )


RULE = Rule(
    detect,
    "warning",
    "give the loader more workers, move transforms to the device or do them once before training, and "
    "look for the phase of a step that keeps the processor busy",
    source="profile",
)
