"""An input, a mask or features of an input that the output does not depend on.

Statistic: the change of the outputs if the values of one input, or of some of its features, are exchanged, in evaluation
mode; and the gradients of the outputs with respect to the features.
Default: no change beyond 32 last places of the largest output, neither before nor after three steps of Adam, nor in
training mode.  Values that are the same in all samples are left out.
Why: layers that begin with zeros hide an input at the first step only.
False alarms: inputs that the model takes and ignores on purpose.
"""

from . import preflight_rule

RULE = preflight_rule(
    "warning",
    "look for a wrong slice, a variable that is used twice, or a mask that is passed and never applied",
)
