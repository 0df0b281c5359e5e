"""A validation loss that has not improved for a long time.

Statistic: the losses of mode ``eval``.
Default: ten successive evaluations are not lower than the lowest one before them by at least a thousandth.
Why: an improvement of less than a thousandth is rarely worth ten evaluations.
False alarms: learning rates that are about to be lowered.
"""

from .finding import Observation, Observations, Rule
from .history import History


def detect(history: History, patience: float = 10, delta: float = 1e-3) -> Observations:
    for name, rounds in history.evaluations():
        before, since = rounds[: -int(patience)], rounds[-int(patience) :]
        if not before:
            continue
        at, least = min(before, key=lambda pair: pair[1])
        if all(value > least - delta * abs(least) for _, value in since):
            yield Observation(
                f"{name} in evaluation has not improved on step {at} ({least:.4g}) in {len(since)} evaluations",
                (name,),
                {f"{name} in evaluation": rounds[-100:]},
            )


RULE = Rule(detect, "info", "stop here, or lower the learning rate", mode="eval", scalars=True)
