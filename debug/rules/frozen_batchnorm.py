"""BatchNorm whose running statistics stay at 0 and 1 while the layer is trained.

Statistic: running mean and variance at an update of a model in training mode, for BatchNorm layers that are in evaluation
mode or have a momentum of 0, and whose scale has a gradient.
Default: all means are 0 and all variances are 1, as in a new layer.
Why: statistics that were learned before and are frozen on purpose have other values.
False alarms: none known.
"""

from .finding import Rule
from .history import noted

RULE = Rule(
    noted("frozen_norms", "the running statistics of {} stay at 0 and 1 during training"),
    "warning",
    "leave BatchNorm in training mode with a momentum above 0, or load statistics before freezing them",
)
