"""Outputs of a sample that depend on the other samples of its batch.

Statistic: the change of the other samples' outputs if one sample is replaced by its neighbour, in evaluation mode.
Default: more than 32 last places of the largest output.
Why: kernels that sum in another order differ by less.
False alarms: models whose samples are meant to interact, such as contrastive ones.
"""

from . import preflight_rule

RULE = preflight_rule(
    "warning",
    "pass batch_first=True if the first dimension is the batch, and look for view(), mean(0), softmax(0) or BatchNorm "
    "without running statistics; ignore it if samples are meant to interact",
)
