"""A loss that gets probabilities instead of logits, or logits instead of probabilities, or outputs of another shape.

Statistic: the operations before the loss that ``step`` gets, from its autograd graph.
Default: softmax, log-softmax or sigmoid before a cross-entropy that applies it itself, or none before a loss that expects
it; tanh or ReLU right before a cross-entropy; outputs that a regression's loss expands, such as (32, 1) beside targets (32,).
Why: applied twice, softmax limits the confidence and the gradients, and so does tanh; without it, nll_loss can fall without
end.  Outputs that are expanded are compared with the targets of all samples, whose mean they learn.
False alarms: a distillation or mixture whose probabilities are used as logits on purpose.
"""

from .finding import Observation, Observations, Rule
from .history import History

WRONG = {
    "softmax before cross_entropy": "cross_entropy applies softmax itself, but gets the outputs of {}",
    "no log_softmax before nll_loss": "nll_loss expects log-probabilities, but gets the outputs of {}",
    "sigmoid before bce_with_logits": "binary_cross_entropy_with_logits applies sigmoid itself, "
    "but gets the outputs of {}",
    "bounded before cross_entropy": "a cross-entropy takes logits of any size and sign, but gets the outputs of {}",
    "outputs expanded": "the loss compares each output with the targets of other samples: it expands outputs of {}",
}


def detect(history: History) -> Observations:
    fault = history.now.facts.get("loss_input")
    if fault and fault[0] in WRONG:
        yield Observation(WRONG[fault[0]].format(fault[1]), ("loss",))


RULE = Rule(
    detect,
    "critical",
    "pass logits to cross_entropy and binary_cross_entropy_with_logits, the outputs of log_softmax to nll_loss, and outputs "
    "and targets of one shape to a regression's loss",
)
