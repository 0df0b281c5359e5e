"""A trainable parameter that no optimizer holds, so that it never learns.

Statistic: which parameters of the model have a gradient at an update, and which ones the watched optimizers have.  Where the
optimizer has parameters of the same shapes that are not the model's, it was made before the model was moved,
wrapped or built anew.
False alarms: parameters that another optimizer has, which the ``Watch`` does not know of; weights that an optimizer
keeps copies of in float32.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Observation, Rule
from .history import History, some


def detect(history: History) -> Iterator[Observation]:
    facts = history.now.facts
    names = tuple(facts.get("unheld", ()))
    if not names:
        return
    shown = some(names)
    if facts.get("stale"):
        what = f"the optimizer holds other parameters in the place of {shown}: those of an earlier copy of the model"
    else:
        what = f"no optimizer holds {shown}"
    yield Observation(what, names)


RULE = Rule(
    detect,
    "critical",
    "make the optimizer after the model is complete, moved and wrapped, with model.parameters(), "
    "or set requires_grad=False",
)
