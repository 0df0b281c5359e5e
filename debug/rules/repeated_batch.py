"""The same batch, or the same few batches in turn, at all steps.

Statistic: mean, standard deviation, minimum and maximum of the model's input.
Default: they are equal in every bit at four successive saved steps, or in four turns of up to five batches, and the input is
not constant.
Why: different batches of real data have different statistics.
False alarms: training on all of the data or on one batch on purpose; a loader without shuffling if the distance of saved
steps is a multiple of the epoch's length.
"""

from collections.abc import Sequence

from .finding import Observation, Observations, Rule
from .history import History, Step

PERIOD = 5
"""Largest number of batches in turn: four turns of them fit into the kept history."""
Batch = tuple[tuple[int, ...], float, float, float, float]


def detect(history: History, steps: float = 4) -> Observations:
    for period in range(1, PERIOD + 1):
        last = history.last(period * int(steps))
        batches = _batches(last) if last is not None else None
        if last is None or batches is None:
            return
        if batches[period:] == batches[:-period] and any(low != high for *_, low, high in batches[:period]):
            what = "the same batch" if period == 1 else f"the same {period} batches in turn"
            yield Observation(
                f"the model got {what} at steps {', '.join(str(step.number) for step in last)}",
                ("input",),
                {"mean": history.points("input", "", "mean")},
            )
            return


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
