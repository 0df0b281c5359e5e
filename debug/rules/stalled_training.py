"""A training without a step for a long time.

Statistic: the seconds between two saved steps, minus the usual time of as many steps (median of the ten distances before).
During a stall, a `Watch` measures the seconds since the last step began.
Default: more than 1,800, after three saved steps.
Why: evaluations and checkpoints that take longer are rare.
False alarms: rare evaluations or checkpoints that take that long; a run that was resumed.
"""

import itertools

import numpy as np

from .finding import Observation, Observations, Rule
from .history import History

BEFORE = 10


def detect(history: History, seconds: float = 1800) -> Observations:
    times = list(history.times)[-BEFORE - 2 :]
    if len(times) < 4 or times[-1][1] - times[-2][1] <= seconds:
        return
    pairs = [(a, b) for a, b in itertools.pairwise(times) if b[0] > a[0]]
    points = [(b[0], (b[1] - a[1]) / (b[0] - a[0])) for a, b in pairs]
    if len(points) < 3:
        return
    (before, since), (now, then) = times[-2:]
    took = then - since
    usual = float(np.median([per_step for _, per_step in points[:-1]])) * (now - before)
    if took - usual > seconds:
        yield Observation(
            f"{took:.0f} seconds passed between steps {before} and {now}; usual are {usual:.0f}",
            (),
            {"seconds for a step": points},
        )


RULE = Rule(
    detect,
    "warning",
    "look at the loader, at storage, and at ranks that wait for each other; py-spy dump shows what a process is doing",
    scalars=True,
)
