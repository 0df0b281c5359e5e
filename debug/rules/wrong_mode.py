"""A model that trains in evaluation mode.

Statistic: ``model.training`` at the update.  Default: false while there is a Dropout or BatchNorm, which it matters
to.
False alarms: fine-tuning with both switched off on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Observation, Rule
from .history import History


def detect(history: History) -> Iterator[Observation]:
    names = tuple(history.now.facts.get("evaluating", ()))
    if names:
        yield Observation(
            f"the model trains in evaluation mode: {', '.join(names[:3])} do not work as in training", names
        )


RULE = Rule(detect, "warning", "call model.train() before training, and after each evaluation")
