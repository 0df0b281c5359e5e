"""BatchNorm whose running statistics never move from 0 and 1, while the layer trains.

Statistic: at an update in a model that is in training mode: running mean and variance of BatchNorm layers which are in
evaluation mode, or have a momentum of 0, and whose scale has a gradient.  Default: all zero and all one, which is how
they are made.
Why: statistics that were learnt before and are frozen on purpose are others.
False alarms: none known.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Observation, Rule
from .history import History, some


def detect(history: History) -> Iterator[Observation]:
    names = tuple(history.now.facts.get("frozen_norms", ()))
    if names:
        yield Observation(
            f"the running statistics of {some(names)} stay at 0 and 1 while training goes on", names
        )


RULE = Rule(
    detect,
    "warning",
    "leave BatchNorm in training mode with a momentum above 0, or load statistics before freezing them",
)
