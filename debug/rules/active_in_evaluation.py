"""Dropout or BatchNorm that works as in training while the model is evaluated.

Statistic: ``training`` of such modules at the end of a saved step of mode ``eval``.
False alarms: dropout that is sampled on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Observation, Rule
from .history import History


def detect(history: History) -> Iterator[Observation]:
    names = tuple(history.now.facts.get("training", ()))
    if names:
        yield Observation(f"{', '.join(names[:3])} work as in training during evaluation", names)


RULE = Rule(detect, "warning", "call model.eval() before evaluation", mode="eval")
