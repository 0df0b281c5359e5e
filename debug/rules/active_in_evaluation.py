"""Dropout or BatchNorm in training mode while the model is evaluated.

Statistic: ``training`` of these modules at the end of a saved step of mode ``eval``.
Default: true for any of them.
Why: active dropout makes the results random, and active BatchNorm takes its statistics from the test data.
False alarms: dropout that is sampled on purpose.
"""

from .finding import Rule
from .history import noted

RULE = Rule(
    noted("training", "{}: in training mode during an evaluation"),
    "warning",
    "call model.eval() before evaluation",
    mode="eval",
)
