"""A loss that is no single number.

Statistic: the shape of the loss.
Default: any dimension of more than one element.  The other checks use its mean.
Why: ``backward()`` refuses such a loss.
False alarms: training loops that reduce the loss themselves.
"""

from . import preflight_rule

RULE = preflight_rule(
    "critical", "reduce the loss to one number: reduction='mean', or loss.mean() before backward()"
)
