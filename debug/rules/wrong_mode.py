"""A model that trains in evaluation mode.

Statistic: ``model.training`` at the update.  Default: false while there is a Dropout or BatchNorm, which it matters
to.
False alarms: fine-tuning with both switched off on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Rule, Seen
from .history import History


def check(history: History) -> Iterator[Seen]:
    names = tuple(history.now.facts.get("evaluating", ()))
    if names:
        yield Seen(
            f"the model trains in evaluation mode: {', '.join(names[:3])} do not work as in training", names
        )


RULE = Rule(check, "warning", "call model.train() before training, and after each evaluation")
