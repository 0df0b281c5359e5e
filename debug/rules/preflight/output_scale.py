"""Outputs of another scale than the targets of a squared loss.

Statistic: the first loss over the loss of the best constant guess.
Default: more than 100, which is ten standard deviations of the targets.
Why: normalized targets and a usual initialization give about 1 to 2.
False alarms: targets that are almost constant in this batch.
"""

from . import preflight_rule

RULE = preflight_rule(
    "warning", "normalize the targets, or set the last layer's bias and scale so that outputs begin near them"
)
