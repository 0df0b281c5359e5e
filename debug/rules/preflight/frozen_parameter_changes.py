"""A frozen parameter that training changes.

Statistic: the difference of the parameters that need no gradient, or that ``frozen=`` names, before and after training on
one batch.
Default: any.
Why: frozen parameters keep their values.
False alarms: copies of the model that forward() updates, such as momentum encoders.
"""

from . import preflight_rule

RULE = preflight_rule(
    "warning",
    "set requires_grad=False, leave the parameter out of the optimizer, and look for an assignment in forward()",
)
