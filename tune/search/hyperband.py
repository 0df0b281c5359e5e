"""Decide by Hyperband which trials to stop: asynchronous successive halving, in brackets.

The resource is the number of reports of the objective.  A bracket has rungs, numbers of reports of which each is ``FACTOR``
times the one before.  A trial that reaches a rung goes on if it is among the best ``1 / FACTOR`` of the trials of its bracket
that have reached it so far; fewer than ``FACTOR`` of them decide nothing.  Brackets differ in their first rung; the last one
has none.  Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020; there, trials wait at a rung, and
here, as in SageMaker, they are programs that go on or are ended.

Nothing is kept but what follows from the job's seed and the reports of its trials, and how many reports of each were judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..job.job import Job
from ..job.limits import Hyperband
from ..trials import Trial

FACTOR = 3


def rungs_of(smallest: int, largest: int) -> list[int]:
    """Return the numbers of reports at which the first bracket decides: below ``largest``, each ``FACTOR`` times the last."""
    rungs, rung = [], smallest
    while rung < largest:
        rungs.append(rung)
        rung *= FACTOR
    return rungs


def bracket_of(seed: int, number: int, rungs: int) -> int:
    """Return the bracket of a trial, from 0; bracket i decides at the rungs from the i-th on.

    Brackets get trials in the shares that Hyperband gives them, drawn by the job's seed and the trial's number.
    """
    halvings = range(rungs, -1, -1)  # of each bracket
    shares = np.array([math.ceil((rungs + 1) / (s + 1) * FACTOR**s) for s in halvings], dtype=float)
    draw = np.random.default_rng([seed, number, 1]).random()
    return int(np.searchsorted(np.cumsum(shares / shares.sum()), draw, side="right").clip(0, rungs))


def goes_on(value: float, others: Sequence[float]) -> bool:
    """Return whether a trial goes on at a rung; smaller values are better, and NaN is the worst.

    Args:
        value: the trial's.
        others: those of the other trials of its bracket that have reached the rung.
    """
    count = len(others) + 1
    if count < FACTOR:
        return True
    value = math.inf if math.isnan(value) else value
    better = sum(other < value for other in others)
    return better < count // FACTOR and value < math.inf


class HyperbandRule:
    """Rule of strategy ``hyperband`` for the trials of one job.

    Args:
        job: the job.
    """

    judges = True

    def __init__(self, job: Job) -> None:
        assert job.objective is not None  # the job refuses several
        resource = job.hyperband or Hyperband()
        self.largest = resource.largest(job.static)
        self._given = resource.max_resource is not None
        self._rungs = rungs_of(resource.min_resource, self.largest)
        self._seed, self._sign = job.seed, -1 if job.objective.goal == "maximize" else 1
        self._values: dict[tuple[int, int], dict[int, float]] = {}
        self._longest = self._ended = 0

    def verdict(self, trial: Trial, known: int) -> str:
        """Return why a running trial is to be stopped; empty: it goes on.

        Args:
            trial: the trial with its reports.
            known: the number of reports that were judged before.  A tuner that was started anew compares other trials with
                them, and does not judge them again.
        """
        values = {place: self._enter(trial, *place) for place in self._reached(trial)}
        if self.uses_all(trial):
            return f"all of its resource is used: {self.largest} reports"
        for (bracket, rung), value in values.items():
            if rung <= known:
                continue
            others = [v for number, v in self._values[bracket, rung].items() if number != trial.number]
            if not goes_on(value, others):
                return f"not among the best third of {len(others) + 1} trials of bracket {bracket} at report {rung}"
        return ""

    def uses_all(self, trial: Trial) -> bool:
        """Return whether a trial went on after its last report, and counts as finished.

        It is ended one report later, so that a program whose last report that is ends by itself.
        """
        return self._given and len(trial.reports) > self.largest

    def ended(self, trial: Trial) -> None:
        """Compare later trials with one that has ended."""
        self._ended += 1
        self._longest = max(self._longest, len(trial.reports))
        for bracket, rung in self._reached(trial):
            self._enter(trial, bracket, rung)

    def unused(self) -> str:
        """Return why the rule has decided nothing; empty: some trial has reached it."""
        least = self._rungs[0] if self._rungs else 1
        if not self._ended or self._longest >= least:
            return ""
        return (
            f"hyperband has stopped nothing: it looks at trials from report {least} of the objective on, and the longest of "
            f"{self._ended} trials had {self._longest} reports; lower hyperband.min_resource, or let the program report "
            "more often (loopwise tune try shows what a log reports)"
        )

    def _reached(self, trial: Trial) -> list[tuple[int, int]]:
        bracket = bracket_of(self._seed, trial.number, len(self._rungs))
        return [(bracket, rung) for rung in self._rungs[bracket:] if rung <= len(trial.reports)]

    def _enter(self, trial: Trial, bracket: int, rung: int) -> float:
        value = self._sign * trial.reports[rung - 1]
        self._values.setdefault((bracket, rung), {})[trial.number] = math.inf if math.isnan(value) else value
        return value
