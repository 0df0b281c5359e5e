"""The same batch, or the same few batches in turn, at all steps.

Statistic: mean, standard deviation, minimum and maximum of the model's input.
Default: they are equal in every bit at four successive saved steps, or in four turns of up to five batches, and the input is
not constant.  A DataLoader whose epochs have one batch (the profile sees that), and a tensor of 100 samples or more that is passed itself each time, are
training on all of the data, and no fault.  Of steps that are all a multiple of some number apart, only those from the beginning count.
Why: different batches of real data have different statistics.  A loader without shuffling gives equal batches at steps that
are a multiple of its epoch apart.
False alarms: training on one batch on purpose; a loader without shuffling if the first saved step is
a multiple of its epoch before the others, too; fewer than 100 samples that a script keeps in a tensor, to train on all of
them, look like a batch that is kept by mistake.
"""

import itertools
import math
from collections.abc import Sequence

from .finding import Observation, Observations, Rule
from .history import History, Step

PERIOD = 5
"""Largest number of batches in turn: four turns of them fit into the kept history."""
Batch = tuple[tuple[int, ...], float, float, float, float]


def detect(history: History, steps: float = 4) -> Observations:
    if history.now.marks.get("full_batch"):
        return
    for period in range(1, PERIOD + 1):
        last = history.last(period * int(steps))
        batches = _batches(last) if last is not None else None
        if last is None or batches is None:
            return
        is_stride = len(last) < len(history.steps()) and _stride(last) > 1
        if is_stride or batches[period:] != batches[:-period]:
            continue
        if any(low != high for *_, low, high in batches[:period]):
            what = "the same batch" if period == 1 else f"the same {period} batches in turn"
            yield Observation(
                f"the model got {what} at steps {', '.join(str(step.number) for step in last)}",
                ("input",),
                {"mean": history.points("input", "", "mean")},
            )
            return


def _stride(steps: Sequence[Step]) -> int:
    """Return the largest number that divides all distances between the steps."""
    return math.gcd(*(after.mode_step - before.mode_step for before, after in itertools.pairwise(steps)))


def _batches(steps: Sequence[Step]) -> list[Batch] | None:
    batches: list[Batch] = []
    for step in steps:
        names, values, shapes, _ = step.columns("input", "mean", "std", "min", "max")
        if "" not in names:
            return None
        place = names.index("")
        mean, std, low, high = (float(array[place]) for array in values)
        batches.append((shapes[place], mean, std, low, high))
    return batches


RULE = Rule(
    detect,
    "warning",
    "shuffle, check that the loader is iterated, instead of asked for its first batch each time, "
    "and that an iterable data set's workers do not all yield the same samples",
)
