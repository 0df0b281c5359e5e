"""Decide which trials to stop early, and when a job has found enough."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Iterable, Sequence

LEAST = 4
"""Number of finished trials that must have reached a report before another one is compared with them."""
FIRST = 1
"""Number of reports of a trial that decide nothing.  On recorded trainings (``benchmarks.tune.stopping``, 40 searches from seed
100) the first epoch's loss misled: without this number 61 % of the epochs are saved, and the best objective is worse by
0.6 % on average and by 9 % at worst; with it 52 % are saved, and no search loses its best trial."""
IMPROVEMENT = 0.01


def averages(curve: Iterable[float]) -> array[float]:
    """Return the running averages of a curve: element i is the mean of the finite ones of its first i + 1 values."""
    result, total, count = array("d"), 0.0, 0
    for value in curve:
        if math.isfinite(value):
            total, count = total + value, count + 1
        result.append(total / count if count else math.nan)
    return result


def is_worse(curve: Sequence[float], finished: Iterable[Sequence[float]], maximize: bool) -> bool:
    """Return whether a running trial is to be stopped, by the rule of SageMaker's automatic model tuning.

    Its present value is compared with the median of the running averages of the finished trials up to the same report.
    Fewer than ``LEAST`` finished trials of that length decide nothing, and neither do NaN and the first ``FIRST`` reports,
    which the service's documentation does not mention.

    Args:
        curve: reports of the objective of the running trial.
        finished: running averages of the reports of each finished trial.
        maximize: a larger objective is better.
    """
    step = len(curve) - 1
    if step < FIRST or not math.isfinite(curve[step]):
        return False
    others = [other[step] for other in finished if len(other) > step and math.isfinite(other[step])]
    if len(others) < LEAST:
        return False
    median = statistics.median(others)
    return curve[step] < median if maximize else curve[step] > median


def improves_no_more(values: Sequence[float], trials: int, maximize: bool) -> bool:
    """Return whether the last ``trials`` objectives improved on the best one before them by less than 1 %."""
    if len(values) <= trials:
        return False
    sign = -1 if maximize else 1
    before, after = min(sign * v for v in values[:-trials]), min(sign * v for v in values[-trials:])
    return after > before - IMPROVEMENT * abs(before)
