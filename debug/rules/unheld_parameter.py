"""A trainable parameter that no optimizer holds, so that it never learns.

Statistic: the parameters with a gradient at an update, and the parameters of the watched optimizers.
Default: any parameter that has a gradient and no optimizer.  If the optimizer holds parameters of the same shapes that are
not the model's, it was made before the model was moved, wrapped or built again.
Why: parameters that need no update should not need a gradient.
False alarms: parameters of an optimizer that the ``Watch`` does not know; weights of which an optimizer keeps float32
copies.
"""

from .finding import Observation, Observations, Rule
from .history import History, some


def detect(history: History) -> Observations:
    facts = history.now.facts
    names = tuple(facts.get("unheld", ()))
    if not names:
        return
    shown = some(names)
    if facts.get("stale"):
        what = f"the optimizer holds parameters of an earlier copy of the model instead of {shown}"
    else:
        what = f"no optimizer holds {shown}"
    yield Observation(what, names)


RULE = Rule(
    detect,
    "critical",
    "make the optimizer after the model is built, moved and wrapped, with model.parameters(), "
    "or set requires_grad=False",
)
