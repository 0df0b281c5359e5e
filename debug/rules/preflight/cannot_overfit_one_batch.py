"""A model that cannot learn even one batch.

Statistic: the share by which the loss falls if a copy of the model is trained on one batch, below the loss of the best
constant guess if that is known.
Default: at most 20 %, with the optimizer of the training and with Adam at three learning rates; left out are models with
fewer than four parameters for each target, and losses that fall 2 % below that of any constant guess.
Why: a model with enough parameters learns one batch by heart if gradients reach them.
False alarms: losses that cannot fall, such as those of adversarial training.
"""

from . import preflight_rule

RULE = preflight_rule(
    "critical",
    "look at the other findings, at the sign of the loss and its targets, at layers that pass no gradient, and at the "
    "size of inputs and initial weights",
)
