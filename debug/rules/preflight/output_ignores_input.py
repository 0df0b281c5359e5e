"""Outputs that do not depend on the input.

Statistic: the difference between the outputs for the batch and for the same values in random order, in evaluation mode.
Default: 32 last places of the largest output, or less.
Why: outputs that depend on the input change by more than rounding.
False alarms: models that ignore the order of values, if all samples consist of the same values.
"""

from . import preflight_rule

RULE = preflight_rule(
    "critical",
    "look for an overwritten variable in forward(), dead activations, a product with zero, or a mask that hides "
    "everything",
)
