"""Decide which trials to stop early, by the median of the finished ones."""

from __future__ import annotations

import math
import statistics
from array import array
from collections.abc import Iterable, Sequence
from typing import Protocol

from ..job.job import Job
from ..trials import Trial
from .hyperband import HyperbandRule

LEAST = 4
"""Number of finished trials that must have reached a report before another one is compared with them."""
FIRST = 1
"""Number of reports of a trial that decide nothing.  On recorded trainings (``benchmarks.tune.stopping``, 40 searches from seed
100) the first epoch's loss misled: without this number 61 % of the epochs are saved, and the best objective is worse by
0.6 % on average and by 9 % at worst; with it 52 % are saved, and no search loses its best trial."""


def averages(curve: Iterable[float]) -> array[float]:
    """Return the running averages of a curve: element i is the mean of the finite ones of its first i + 1 values."""
    result, total, count = array("d"), 0.0, 0
    for value in curve:
        if math.isfinite(value):
            total, count = total + value, count + 1
        result.append(total / count if count else math.nan)
    return result


def is_worse(
    curve: Sequence[float], finished: Iterable[Sequence[float]], maximize: bool, report: int = -1
) -> bool:
    """Return whether a running trial is to be stopped, by the rule of SageMaker's automatic model tuning.

    Its value at a report is compared with the median of the running averages of the finished trials up to the same report.
    Fewer than ``LEAST`` finished trials of that length decide nothing, and neither do NaN and the first ``FIRST`` reports,
    which the service's documentation does not mention.

    Args:
        curve: reports of the objective of the running trial.
        finished: running averages of the reports of each finished trial.
        maximize: a larger objective is better.
        report: place of the report in the curve; the last one by default.
    """
    step = report if report >= 0 else len(curve) - 1
    if step < FIRST or not math.isfinite(curve[step]):
        return False
    others = [other[step] for other in finished if len(other) > step and math.isfinite(other[step])]
    if len(others) < LEAST:
        return False
    median = statistics.median(others)
    return curve[step] < median if maximize else curve[step] > median


class Rule(Protocol):
    """Rule by which running trials are stopped.

    Attributes:
        judges: it may stop trials.
    """

    judges: bool

    def verdict(self, trial: Trial, known: int) -> str:
        """Return why a running trial is to be stopped; empty: it goes on.

        The first ``known`` of its reports were judged before, perhaps by a tuner that was killed, and are not judged again.
        """

    def uses_all(self, trial: Trial) -> bool:
        """Return whether a trial that is stopped has used all of its resource, and counts as finished."""

    def ended(self, trial: Trial) -> None:
        """Compare later trials with one that has ended."""

    def unused(self) -> str:
        """Return why the rule could decide nothing so far; empty: it could."""


class MedianRule:
    """Rule of ``early_stopping: auto``."""

    judges = True

    def __init__(self, maximize: bool) -> None:
        self._maximize = maximize
        self._averages: list[Sequence[float]] = []

    def verdict(self, trial: Trial, known: int) -> str:
        new = range(known, len(trial.reports))  # several may have come since the last look
        worse = any(is_worse(trial.reports, self._averages, self._maximize, report) for report in new)
        return "worse than the median of the finished trials" if worse else ""

    def uses_all(self, trial: Trial) -> bool:
        return False

    def ended(self, trial: Trial) -> None:
        if trial.state == "finished":
            self._averages.append(averages(trial.reports))

    def unused(self) -> str:
        return ""


class NoRule:
    """Rule that stops no trial."""

    judges = False

    def verdict(self, trial: Trial, known: int) -> str:
        return ""

    def uses_all(self, trial: Trial) -> bool:
        return False

    def ended(self, trial: Trial) -> None:
        pass

    def unused(self) -> str:
        return ""


def rule_of(job: Job) -> Rule:
    """Return the rule by which a job stops running trials."""
    if job.strategy == "hyperband":
        return HyperbandRule(job)
    if job.early_stopping == "auto" and job.objective is not None:
        return MedianRule(job.objective.goal == "maximize")
    return NoRule()
