"""A language model whose outputs depend on the tokens that they have to predict.

Statistic: the outputs at the first half of the positions, in evaluation mode, for the batch and for the batch with other tokens
in the second half; only if the targets are the input tokens, shifted by one.
Default: any difference beyond rounding.
Why: without a causal mask the next token is in the input, and the loss falls to zero whatever the text.
False alarms: none known.
"""

from . import preflight_rule

RULE = preflight_rule(
    "critical",
    "pass a causal mask to the attention, and use no bidirectional recurrence or pooling over positions",
)
