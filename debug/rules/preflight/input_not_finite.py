"""NaN or infinity in the batch.

Statistic: the number of NaN and infinite values in the floating-point tensors of the batch.
Default: any.
Why: one such value makes the loss and all gradients NaN.
False alarms: batches with NaN for missing values, which the model replaces.
"""

from . import preflight_rule

RULE = preflight_rule(
    "critical", "look for empty fields in the data and for divisions by zero in its preparation"
)
