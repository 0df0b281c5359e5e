"""A backward pass that does not give the derivative of the forward pass.

Statistic: with ``gradcheck=True``, the derivative of the loss along a random direction of each parameter, by backward and by
central differences, in float64.
Default: they differ by more than a thousandth of the larger one and a millionth of the largest of all, along two random
directions.
Why: central differences in float64 are exact to about eight digits.
False alarms: straight-through estimators, and forward passes that work in float32 inside.
"""

from . import preflight_rule

RULE = preflight_rule("critical", "look at the backward() of your torch.autograd.Function classes")
