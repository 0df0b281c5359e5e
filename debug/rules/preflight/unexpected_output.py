"""An output of another shape or range than ``output_shape=`` and ``output_range=`` say.

Statistic: shape, smallest and largest value of the first floating-point output, in evaluation mode.
Default: any difference.
Why: a wrong size of the last layer, or a missing or repeated sigmoid, changes them.
False alarms: none known.
"""

from . import preflight_rule

RULE = preflight_rule("critical", "look at the size of the last layer and at its activation")
