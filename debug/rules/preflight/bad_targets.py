"""Targets that do not fit the loss.

Statistic: dtype, shape and range of the outputs and targets that the losses of torch are called with.
Default: class indices out of range, of another dtype or shape; targets of a binary cross-entropy outside of 0 to 1 or of
another shape; outputs and targets that broadcast to a larger shape.
Why: on a GPU, a class index out of range ends the process; broadcasting compares each output with the wrong targets.
False alarms: losses that broadcast on purpose.
"""

from . import preflight_rule

RULE = preflight_rule("critical", "bring outputs and targets to the dtype and shape that the loss expects")
