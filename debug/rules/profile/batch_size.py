"""Devices that a larger batch would fill.

Statistic: the 95th percentiles of a device's utilization, of its memory in use and of the utilization of the machine's
processors, over the last 500 samples since the first step.
Default: all are below 70 % (the defaults of SageMaker Debugger).
Why: a device below these limits has memory and time left, and does not wait for the processors.
False alarms: a batch size that the optimization requires; short steps with pauses between them.
"""

import numpy as np

from ..finding import Observation, Observations, Rule
from .series import Series, finite


def detect(
    series: Series, utilization: float = 70.0, memory: float = 70.0, cpu: float = 70.0, samples: float = 500.0
) -> Observations:
    recent = series.recent(samples)
    if not len(recent) or "cpu" not in recent or np.percentile(recent["cpu"], 95) >= cpu:
        return
    for name, utilizations in series.utilization(recent).items():
        total = series.header["totals"].get(f"{name}_memory", 0.0)
        memories = finite(recent[f"{name}_memory"])
        if not len(memories) or not total > 0:  # the device does not report its memory
            continue
        busy, held = np.percentile(utilizations, 95), 100 * np.percentile(memories, 95) / total
        if busy < utilization and held < memory:
            yield Observation(
                f"{name} is below {busy:.0f} % of utilization and {held:.0f} % of memory in 95 % of the samples",
                (name,),
                series.points({f"{name}, %": recent[name]}, recent),
            )


RULE = Rule(
    detect,
    "info",
    "raise the batch size: loopwise.compile.fit measures which size trains the most samples a second",
    source="profile",
)
