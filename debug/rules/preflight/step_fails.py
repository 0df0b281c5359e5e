"""A training step that raises.

Statistic: the exceptions of forward, backward and update on copies of the model and the optimizer.
Default: any exception.
Why: the same exception would end the training.
False alarms: models that cannot run twice on the same batch.
"""

from . import preflight_rule

RULE = preflight_rule("critical", "make one step of forward, backward and update work on this batch")
