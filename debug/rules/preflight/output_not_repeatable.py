"""Outputs in evaluation mode that differ each time for the same input.

Statistic: the difference between the outputs of two forward passes in evaluation mode, with different random seeds.
Default: more than 32 last places of the largest output.
Why: kernels that sum in another order differ by less.
False alarms: models that sample on purpose.
"""

from . import preflight_rule

RULE = preflight_rule(
    "warning",
    "use nn.Dropout, or F.dropout(x, training=self.training); if train() or eval() is overridden, call the parent's method",
)
