"""An optimizer that does not reduce the loss of one batch, although Adam does.

Statistic: the share by which the loss falls if a copy of the model is trained on one batch.
Default: at most 2 % with the optimizer of the training, and more than 20 % with Adam at a learning rate of 1e-3, 1e-2 or 1e-4.
Why: a model that learns with Adam can learn; then the optimizer, its learning rate or its parameters are at fault.
False alarms: optimizers that need many steps before they move.
"""

from . import preflight_rule

RULE = preflight_rule(
    "warning",
    "choose another learning rate, and look at weight decay, clipping and the parameters that the optimizer holds",
)
