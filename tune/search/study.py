"""The study: which trials were asked for, and what became of them.  Optuna's journal is the only record."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from loopwise.errors import StateError

from .. import trials as records
from ..job.constraints import DRAWS
from ..job.job import Job
from ..job.parameters import Categorical
from .samplers import Point, sampler_of, seed_of
from .view import in_memory
from .warm_start import converted

optuna.logging.set_verbosity(optuna.logging.WARNING)
MODELS = (2, 40)
"""Numbers of draws, by the strategy's sampler and by TPE, that may break a constraint before the next sampler draws.  A Gaussian
process proposes much the same again; TPE draws at random from its model; the last draws are random."""


class Study:
    """Trials of one job.

    Each trial is asked for with a sampler of its own, seeded by the job's seed and the trial's number, so that a resumed
    job does not draw the same points again.  In Optuna's study, the trials of a warm start come first; the numbers of this
    class are those of the job's own trials, from 0.

    Args:
        job: the job.
        storage: where the study is kept; it is made there if it does not exist.
        name: of the study.
        inherited: trials of the parents of a warm start.
    """

    def __init__(
        self, job: Job, storage: BaseStorage, name: str = "job", inherited: Sequence[records.Trial] = ()
    ) -> None:
        self.job, self._storage, self._name = job, storage, name
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[goal.goal for goal in job.goals],
            load_if_exists=True,
        )
        self._distributions = {name: part.distribution() for name, part in job.parameters.items()}
        self._seed = seed_of_job(job)
        self._first = len(inherited)
        for trial in inherited[
            len(self.study.get_trials(deepcopy=False)) :
        ]:  # others are there: a tuner was killed
            frozen = converted(job, trial)
            assert frozen is not None, "only trials in the job's space are inherited"
            self.study.add_trial(frozen)
        self._grid = self._points(inherited) if job.strategy == "grid" else None

    def _points(self, inherited: Sequence[records.Trial]) -> list[dict[str, Any]]:
        """Return the points of a grid, without those that break a constraint, or that an identical job has tried."""
        parts = [part for part in self.job.parameters.values() if isinstance(part, Categorical)]
        tried = []
        if self.job.warm_start is not None and self.job.warm_start.type == "identical":
            tried = [[p.stored(t.values[n]) for n, p in self.job.parameters.items()] for t in inherited]
        rows = itertools.product(*([part.stored(value) for value in part.values] for part in parts))
        points = (dict(zip(self.job.parameters, row, strict=True)) for row in rows if list(row) not in tried)
        admitted = (point for point in points if self.job.admits(self.job.values(point)))
        return list(itertools.islice(admitted, self.job.limits.trials))

    @property
    def limit(self) -> int:
        """Number of trials of the job."""
        return self.job.limits.trials if self._grid is None else len(self._grid)

    def trials(self) -> list[FrozenTrial]:
        """Return the job's own trials in order, those that run included."""
        return self.study.get_trials(deepcopy=False)[self._first :]

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return the number of a new trial, and all values that its program gets.

        Raises:
            StateError: no values that satisfy the constraints were found.
        """
        self.study.sampler = Point({})
        asked = self.study.ask()
        return asked.number - self._first, self._values(self.study.get_trials(deepcopy=False)[asked.number])

    def running(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the trials that were asked for and not told, with all of their values."""
        for frozen in self.trials():
            if frozen.state == TrialState.RUNNING:
                yield frozen.number - self._first, self._values(frozen)

    def tell(self, number: int, reports: int, values: Sequence[float] | None, stopped: bool) -> None:
        """Record the end of a trial.  A trial that was told before stays as it is.

        Args:
            number: number of the trial.
            reports: number of its reports.
            values: its objectives; ``None``: it failed.
            stopped: it was stopped early.
        """
        frozen = self.trials()[number]
        if values is None:
            self.study.tell(frozen.number, state=TrialState.FAIL, skip_if_finished=True)
        elif stopped:
            if frozen.state == TrialState.RUNNING and len(values) == 1:  # Optuna has no reports of several
                self._live(frozen).report(values[0], max(0, reports - 1))
            self.study.tell(frozen.number, state=TrialState.PRUNED, skip_if_finished=True)
        else:
            self.study.tell(frozen.number, list(values), skip_if_finished=True)

    # -- values ---------------------------------------------------------------------------------

    def _values(self, frozen: FrozenTrial) -> dict[str, Any]:
        """Return the values of a trial, after drawing those that it does not have.

        A tuner may have been killed while it wrote them; the others are then drawn as it would have drawn them.
        """
        missing = [name for name in self._distributions if name not in frozen.params]
        if not missing:
            return self.job.values(frozen.params)
        self.study.sampler = Point(self._point(frozen))
        live = self._live(frozen)
        for name in missing:
            _suggest(live, name, self._distributions[name])
        return self.job.values(live.params)

    def _live(self, frozen: FrozenTrial) -> Trial:
        """Return a trial that takes values and reports: ``Study.ask`` alone returns one, perhaps in an earlier process."""
        study = self._storage.get_study_id_from_name(self._name)
        return Trial(self.study, self._storage.get_trial_id_from_study_id_trial_number(study, frozen.number))

    def _point(self, frozen: FrozenTrial) -> dict[str, Any]:
        """Return values for a trial that satisfy the constraints; those that it has are kept."""
        if self._grid is not None:
            return self._grid[frozen.number - self._first]
        study = self._searched()
        trial = study.get_trials(deepcopy=False)[frozen.number]
        for draw in range(DRAWS):
            sampler = self._sampler(frozen.number, draw)
            space = sampler.infer_relative_search_space(study, trial)
            point = sampler.sample_relative(study, trial, space)
            for name, distribution in self._distributions.items():
                if distribution.single():
                    assert isinstance(distribution, CategoricalDistribution)  # low is below high in ranges
                    point[name] = distribution.choices[0]
                elif name not in point:
                    point[name] = sampler.sample_independent(study, trial, name, distribution)
            point |= frozen.params
            if self.job.admits(self.job.values(point)):
                return point
        raise StateError(
            f"{DRAWS} draws of values of which none satisfies the constraints",
            "values that satisfy " + " and ".join(map(repr, self.job.constraints)),
            "constraints that leave a very small part of the ranges",
            "narrow the ranges to it",
        )

    def _sampler(self, number: int, draw: int) -> BaseSampler:
        """Return the sampler of a draw of a trial's values; a draw above 0 follows one that broke a constraint."""
        seed = self._seed if draw == 0 else seed_of(self._seed, draw)
        if draw >= MODELS[1]:
            return RandomSampler(seed=seed_of(seed, number))
        if draw >= MODELS[0] and self.job.strategy != "random":
            return TPESampler(seed=seed_of(seed, number))
        ended = sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))
        goals = len(self.job.goals)
        return sampler_of(self.job.strategy, seed, number, self._distributions, ended, goals)

    def _searched(self) -> optuna.Study:
        """Return the study that the sampler reads: a copy if many draws may be due, since TPE writes each one down."""
        transfers = self.job.warm_start is not None and self.job.warm_start.type == "transfer"
        if self.job.strategy == "random" or not (transfers or self.job.constraints):
            return self.study
        return in_memory(self.study, transfers)


def seed_of_job(job: Job) -> int:
    """Return the seed of a job's draws, which are others than those of its parents with the same ``seed``."""
    if job.warm_start is None:
        return job.seed
    return seed_of(job.seed, zlib.crc32("\n".join(job.warm_start.parents).encode()))


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> None:
    """Give a trial the value that the study's sampler returns for a parameter."""
    if isinstance(distribution, FloatDistribution):
        trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    else:
        assert isinstance(distribution, CategoricalDistribution)
        trial.suggest_categorical(name, distribution.choices)
