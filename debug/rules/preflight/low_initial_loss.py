"""A loss that begins far below that of guessing.

Statistic: the first loss, between the loss of the best constant guess and the lowest loss.
Default: below half of the way.
Why: a model that was not trained knows nothing; the target may be among its inputs.
False alarms: models that were trained before.
"""

from . import preflight_rule

RULE = preflight_rule("info", "look for the target among the inputs, unless the model was trained before")
