"""The study: which trials were asked for, and what became of them.  Optuna's journal is the only record."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from ..job.job import Job
from ..job.parameters import Categorical
from .samplers import Point, sampler_of

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """Trials of one job.

    Each trial is asked for with a sampler of its own, seeded by the job's seed and the trial's number, so that a resumed
    job does not draw the same points again.

    Args:
        job: the job.
        storage: where the study is kept; it is made there if it does not exist.
        name: of the study.
    """

    def __init__(self, job: Job, storage: BaseStorage, name: str = "job") -> None:
        self.job = job
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=job.objective.goal,
            load_if_exists=True,
        )
        self._distributions = {name: part.distribution() for name, part in job.parameters.items()}
        self._grid = self._points() if job.strategy == "grid" else None

    def _points(self) -> list[dict[str, Any]]:
        parts = [part for part in self.job.parameters.values() if isinstance(part, Categorical)]
        rows = itertools.product(*([part.stored(value) for value in part.values] for part in parts))
        return [dict(zip(self.job.parameters, row, strict=True)) for row in rows]

    @property
    def limit(self) -> int:
        """Number of trials of the job."""
        trials = self.job.limits.trials
        return trials if self._grid is None else min(trials, len(self._grid))

    def trials(self) -> list[FrozenTrial]:
        """Return all trials in order, those that run included."""
        return self.study.get_trials(deepcopy=False)

    def ask(self) -> Trial:
        """Return a new trial with its values."""
        self.study.sampler = self._sampler(len(self.trials()))
        return self.study.ask(self._distributions)

    def running(self) -> Iterator[FrozenTrial | Trial]:
        """Yield the trials that were asked for and not told, with all of their values."""
        for frozen in self.trials():
            if frozen.state == TrialState.RUNNING:
                yield frozen if len(frozen.params) == len(self._distributions) else self._completed(frozen)

    def _completed(self, frozen: FrozenTrial) -> Trial:
        """Draw the values of a trial whose tuner was killed while it asked, as it would have drawn them."""
        self.study.sampler = self._sampler(frozen.number)
        trial = Trial(self.study, frozen._trial_id)
        for name, distribution in self._distributions.items():
            if name in frozen.params:  # drawn again, so that the sampler's next draw is the next one
                self.study.sampler.sample_independent(self.study, frozen, name, distribution)
            else:
                trial._suggest(name, distribution)
        return trial

    def values(self, trial: FrozenTrial | Trial) -> dict[str, Any]:
        """Return all values that a trial's program gets."""
        return self.job.values(trial.params)

    def tell(self, number: int, reports: Sequence[float], value: float | None, stopped: bool) -> None:
        """Record the end of a trial; ``value=None``: it failed.  A trial that was told before stays as it is."""
        if value is None:
            self.study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        elif stopped:
            trial = self.trials()[number]
            if trial.state == TrialState.RUNNING:
                live = Trial(
                    self.study, trial._trial_id
                )  # ``ask`` alone returns one, perhaps in an earlier process
                live.report(value, max(0, len(reports) - 1))
            self.study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            self.study.tell(number, value, skip_if_finished=True)

    def _sampler(self, number: int) -> BaseSampler:
        if self._grid is not None:
            return Point(self._grid[number])
        ended = sum(trial.state.is_finished() for trial in self.trials())
        return sampler_of(self.job.strategy, self.job.seed, number, self._distributions, ended)
