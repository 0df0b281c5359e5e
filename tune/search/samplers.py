"""Samplers: where the values of the next trial come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial

from .gaussian import GaussianSampler, suits


def seed_of(seed: int, number: int) -> int:
    """Return the seed of one trial, by the job's seed and the trial's number in the study."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def sampler_of(
    strategy: str,
    seed: int,
    number: int,
    distributions: Mapping[str, BaseDistribution],
    ended: int,
    objectives: int = 1,
) -> BaseSampler:
    """Return the sampler of one trial, seeded by the job's seed and the trial's number.

    A resumed job does not draw the same points again, since no trial uses the random numbers of another one.

    Args:
        strategy: the job's strategy; grids have points in place of a sampler.
        seed: the job's seed.
        number: number of the trial in the study.
        distributions: name -> distribution, of all parameters.
        ended: number of trials that have ended.
        objectives: number of objectives; the Gaussian process has one.  Nor is it used for ``hyperband``, most of whose trials
            are stopped, at different numbers of reports, which TPE takes into account.
    """
    own = seed_of(seed, number)
    if strategy == "random":
        return RandomSampler(seed=own)
    if strategy == "bayesian" and objectives == 1 and suits(distributions, ended):
        return GaussianSampler(distributions, seed, number, own)
    return TPESampler(seed=own)


class Point(BaseSampler):
    """Sampler that returns the values of one point."""

    def __init__(self, point: dict[str, Any]) -> None:
        self._point = point

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._point[param_name]
