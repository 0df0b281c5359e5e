"""The same batch again and again.

Statistic: mean, standard deviation, minimum and maximum of the model's input.  Default: equal in every bit at four
saved steps running, and not constant.
False alarms: training on all of the data or on one batch on purpose; a loader without shuffling whose epoch has a
number of steps that the distance of saved steps is a multiple of.
"""

from __future__ import annotations

from collections.abc import Iterator

from .finding import Rule, Seen
from .history import History


def check(history: History, steps: float = 4) -> Iterator[Seen]:
    last = history.last(int(steps))
    if last is None:
        return
    batches = []
    for step in last:
        names, values, shapes, _ = step.columns("input", "mean", "std", "min", "max")
        if "" not in names:
            return
        place = names.index("")
        batches.append((shapes[place], *(float(each[place]) for each in values)))
    if all(batch == batches[0] for batch in batches) and batches[0][3] != batches[0][4]:
        yield Seen(
            f"the model got the same batch at steps {', '.join(str(step.number) for step in last)}",
            ("input",),
            {"mean": history.points("input", "", "mean")},
        )


RULE = Rule(
    check,
    "warning",
    "shuffle, check that the loader is iterated and not asked for its first batch each time, "
    "and that an iterable data set's workers do not all yield the same",
)
