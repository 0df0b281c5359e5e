"""A loss that gets probabilities where it wants logits, or logits where it wants probabilities.

Statistic: the operations behind the loss that ``step`` gets, from its autograd graph: softmax, log-softmax or
sigmoid before cross-entropy, or none before the losses that want one.
False alarms: a distillation or mixture whose probabilities are meant to be logits.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Observation, Rule
from .history import History

WRONG = {
    "softmax before cross_entropy": "cross_entropy applies softmax itself, and gets the outputs of a {} here",
    "no log_softmax before nll_loss": "nll_loss wants log-probabilities, and gets the outputs of {} here",
    "sigmoid before bce_with_logits": "binary_cross_entropy_with_logits applies sigmoid itself, "
    "and gets the outputs of a {} here",
}


def detect(history: History) -> Iterator[Observation]:
    found = history.now.facts.get("loss_input")
    if found and found[0] in WRONG:
        yield Observation(WRONG[found[0]].format(found[1]), ("loss",))


RULE = Rule(
    detect,
    "critical",
    "give logits to cross_entropy and binary_cross_entropy_with_logits, and log_softmax's outputs to nll_loss",
)
