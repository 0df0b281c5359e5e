"""A batch whose targets are all of one class.

Statistic: the number of classes among the targets of the batch, one target for each sample.
Default: one class among 16 samples or more.
Why: two equally frequent classes give this once in 32,768 batches.
False alarms: data of which almost all is one class.
"""

from . import preflight_rule

RULE = preflight_rule("warning", "shuffle the data, and look at how targets are read")
