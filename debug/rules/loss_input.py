"""A loss that gets probabilities instead of logits, or logits instead of probabilities.

Statistic: the operations before the loss that ``step`` gets, from its autograd graph.
Default: softmax, log-softmax or sigmoid before a cross-entropy that applies it itself, or none before a loss that expects
it.
Why: applied twice, softmax limits the confidence and the gradients; without it, nll_loss can fall without end.
False alarms: a distillation or mixture whose probabilities are used as logits on purpose.
"""

from .finding import Observation, Observations, Rule
from .history import History

WRONG = {
    "softmax before cross_entropy": "cross_entropy applies softmax itself, but gets the outputs of {}",
    "no log_softmax before nll_loss": "nll_loss expects log-probabilities, but gets the outputs of {}",
    "sigmoid before bce_with_logits": "binary_cross_entropy_with_logits applies sigmoid itself, "
    "but gets the outputs of {}",
}


def detect(history: History) -> Observations:
    fault = history.now.facts.get("loss_input")
    if fault and fault[0] in WRONG:
        yield Observation(WRONG[fault[0]].format(fault[1]), ("loss",))


RULE = Rule(
    detect,
    "critical",
    "pass logits to cross_entropy and binary_cross_entropy_with_logits, and the outputs of log_softmax to nll_loss",
)
