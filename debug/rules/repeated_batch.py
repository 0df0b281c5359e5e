"""The same batch again and again, or the same few in turn.

Statistic: mean, standard deviation, minimum and maximum of the model's input.  Default: equal in every bit at four
saved steps running, or for four turns of five batches at most, and not constant.
False alarms: training on all of the data or on one batch on purpose; a loader without shuffling whose epoch has a
number of steps that the distance of saved steps is a multiple of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .finding import Observation, Rule
from .history import History, Step

PERIOD = 5
"""Batches in turn: with four turns so many are remembered."""
Batch = tuple[tuple[int, ...], float, float, float, float]


def detect(history: History, steps: float = 4) -> Iterator[Observation]:
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
    found: list[Batch] = []
    for step in steps:
        names, values, shapes, _ = step.columns("input", "mean", "std", "min", "max")
        if "" not in names:
            return None
        place = names.index("")
        mean, std, low, high = (float(each[place]) for each in values)
        found.append((shapes[place], mean, std, low, high))
    return found


RULE = Rule(
    detect,
    "warning",
    "shuffle, check that the loader is iterated and not asked for its first batch each time, "
    "and that an iterable data set's workers do not all yield the same",
)
