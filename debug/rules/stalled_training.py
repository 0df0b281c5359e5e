"""A training that stood still for long between two saved steps.

Statistic: seconds between two saved steps, less what as many steps usually take (the median of the ten distances
before).  Default: more than 1,800, after three saved steps.  While it stands still a `Watch` says so itself.
False alarms: evaluations or checkpoints that take that long and come seldom; a run that was resumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from .finding import Observation, Rule
from .history import History

BEFORE = 10


def detect(history: History, seconds: float = 1800) -> Iterator[Observation]:
    steps = history.steps()[-BEFORE - 2 :]
    if len(steps) < 4:
        return
    paces = [
        (b.time - a.time) / (b.number - a.number) for a, b in itertools.pairwise(steps) if b.number > a.number
    ]
    if len(paces) < 3:
        return
    took = steps[-1].time - steps[-2].time
    usual = float(np.median(paces[:-1])) * (steps[-1].number - steps[-2].number)
    if took - usual > seconds:
        yield Observation(
            f"{took:.0f} seconds went by between steps {steps[-2].number} and {steps[-1].number}, usually {usual:.0f}",
            (),
            {"seconds for a step": [(b.number, pace) for b, pace in zip(steps[1:], paces, strict=False)]},
        )


RULE = Rule(
    detect,
    "warning",
    "look at the loader, at storage, and at ranks that wait for each other; py-spy dump shows where a process is",
)
