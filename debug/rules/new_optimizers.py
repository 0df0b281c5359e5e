"""An optimizer that is made anew for each update, so that it never remembers earlier gradients.

Statistic: the number of optimizers with momentum or adaptive rates that took the place of an earlier one, and of steps.
Default: 16 of them or more, and one for every second step or more.
Why: momentum and the moments of Adam begin at zero in a new optimizer.  Adam's first update is the sign of the gradient times
the learning rate, whatever the gradient's size.
False alarms: none known; one optimizer for each epoch is rare enough.
"""

from .finding import Observation, Observations, Rule
from .history import History


def detect(history: History, updates: float = 16, share: float = 0.5) -> Observations:
    count, steps = history.now.facts.get("new_optimizers", 0), history.now.mode_step + 1
    if count >= max(updates, share * steps):
        yield Observation(
            f"{count} optimizers were made in {steps} steps, each of which forgets the gradients before it"
        )


RULE = Rule(detect, "warning", "make the optimizer once, before the loop", most=1)
