"""A model that trains in evaluation mode.

Statistic: ``model.training`` at the update.
Default: false for a model that contains Dropout or BatchNorm.
Why: only these modules depend on the mode.
False alarms: fine-tuning with both switched off on purpose.
"""

from __future__ import annotations

from .finding import Observation, Observations, Rule
from .history import History, some


def detect(history: History) -> Observations:
    names = tuple(history.now.facts.get("evaluating", ()))
    if names:
        yield Observation(
            f"the model trains in evaluation mode: {some(names)} work differently than in training mode",
            names,
        )


RULE = Rule(detect, "warning", "call model.train() before training, and after each evaluation")
