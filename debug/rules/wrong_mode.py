"""A model that trains in evaluation mode.

Statistic: ``model.training`` at the update.
Default: false for a model that contains Dropout or BatchNorm.
Why: only these modules depend on the mode.
False alarms: fine-tuning with both switched off on purpose.
"""

from .finding import Rule
from .history import noted

RULE = Rule(
    noted("evaluating", "the model trains in evaluation mode: {} work differently than in training mode"),
    "warning",
    "call model.train() before training, and after each evaluation",
)
