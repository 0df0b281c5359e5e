"""A learning rate with which the loss of one batch rises, or hardly falls, although another one reduces it.

Statistic: the share by which the loss falls if a copy of the model is trained on one batch, with the optimizer of the
training and with other learning rates.
Default: it rises, or falls by at most 2 %, and falls by more than 20 % if the learning rate is 10 to 100,000 times smaller
or larger.
Why: everything else in the training is the same.
False alarms: learning rates that are meant for a long warmup that no scheduler sets.
"""

from . import preflight_rule

RULE = preflight_rule("warning", "choose another learning rate")
