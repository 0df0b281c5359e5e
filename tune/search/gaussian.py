"""Search by a Gaussian process, from start points that fill the space.

Optuna's ``GPSampler`` proposes the values.  It is given a study of its own for each trial, with three changes:

- The start points are a scrambled Sobol sequence, and five of them are enough, where Optuna draws ten at random.
- Values that are worse than the median count by their logarithm, since a few very bad ones, such as the losses of trainings
  that diverged, would leave the model blind for the differences between good ones.
- Trials that were stopped early count as not better than the median.  Optuna leaves them out, and tries their like again.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

START = 5
"""Number of ended trials before the model proposes values; ``benchmarks.tune.choice`` compares it with Optuna's ten."""
TRIALS = 100
"""Number of ended trials up to which the model is used: its time for a trial, 0.4 s then, grows with their cube."""
PARAMETERS = 10
"""Number of parameters up to which the model is used; it was compared on functions of two to seven."""
logging.getLogger("optuna._gp.optim_mixed").setLevel(logging.ERROR)  # it warns for each trial near an optimum


def suits(distributions: Mapping[str, BaseDistribution], ended: int) -> bool:
    """Return whether the model is used for a trial: few parameters, few ended trials, and SciPy is installed."""
    return len(distributions) <= PARAMETERS and ended <= TRIALS and find_spec("scipy") is not None


def compressed(values: Sequence[float]) -> np.ndarray:
    """Return values to minimize, with the logarithm of the distance for those above the median.

    The unit of the logarithm is the distance between the best value and the median, so that the result does not depend on
    the objective's unit.
    """
    array = np.asarray(values, dtype=float)
    middle, best = float(np.median(array)), float(array.min())
    scale = middle - best
    if scale <= 0:
        return array
    return np.where(array > middle, middle + scale * np.log1p(np.maximum(array - middle, 0) / scale), array)


def start_point(distributions: Mapping[str, BaseDistribution], seed: int, number: int) -> dict[str, Any]:
    """Return point ``number`` of the Sobol sequence that ``seed`` scrambles: name -> value."""
    engine: Any = torch.quasirandom.SobolEngine  # without types
    sequence = engine(len(distributions), scramble=True, seed=seed % 2**63)
    shares = sequence.fast_forward(number).draw(1, dtype=torch.float64)[0].tolist()
    return {
        name: _placed(distribution, share)
        for (name, distribution), share in zip(distributions.items(), shares, strict=True)
    }


def _placed(distribution: BaseDistribution, share: float) -> Any:
    """Return the value at a share in [0, 1] of a distribution's range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[
            min(int(share * len(distribution.choices)), len(distribution.choices) - 1)
        ]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    whole = isinstance(distribution, IntDistribution)
    low, high = distribution.low - 0.5 * whole, distribution.high + 0.5 * whole
    value = low * (high / low) ** share if distribution.log else low + share * (high - low)
    return min(max(round(value) if whole else value, distribution.low), distribution.high)


class GaussianSampler(BaseSampler):
    """Sampler of one trial.

    Args:
        distributions: name -> distribution, of all parameters.
        seed: the job's seed, which scrambles the start points.
        number: number of the trial.
        own: seed of the model's random numbers.
    """

    def __init__(
        self, distributions: Mapping[str, BaseDistribution], seed: int, number: int, own: int
    ) -> None:
        self._distributions, self._seed, self._number, self._own = dict(distributions), seed, number, own

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        if len(_ended(study)) < START:
            return {}
        return {name: part for name, part in self._distributions.items() if not part.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        ended = [other for other in _ended(study) if search_space.keys() <= other.params.keys()]
        if not search_space or not ended:
            return {}
        running = [
            other
            for other in study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
            if other.number != trial.number and search_space.keys() <= other.params.keys()
        ]
        own = optuna.create_study(sampler=self._model())
        for other, value in zip(ended, compressed(_values(study, ended)), strict=True):
            own.add_trial(_copied(other, search_space, state=TrialState.COMPLETE, value=float(value)))
        for other in running:
            own.add_trial(_copied(other, search_space, state=TrialState.RUNNING))
        return own.ask(search_space).params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return start_point(self._distributions, self._seed, self._number)[param_name]

    def _model(self) -> GPSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return GPSampler(seed=self._own, n_startup_trials=1, warn_independent_sampling=False)


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials with a value, stopped ones included."""
    states = [TrialState.COMPLETE, TrialState.PRUNED]
    return [t for t in study.get_trials(deepcopy=False, states=states) if t.value is not None]


def _values(study: optuna.Study, ended: Sequence[FrozenTrial]) -> list[float]:
    """Return the values to minimize; that of a stopped trial is at least the median of the finished ones."""
    sign = 1.0 if study.direction == StudyDirection.MINIMIZE else -1.0
    finished = [sign * t.value for t in ended if t.state == TrialState.COMPLETE and t.value is not None]
    least = float(np.median(finished)) if finished else -np.inf
    values = [sign * (t.value or 0.0) for t in ended]
    return [
        value if t.state == TrialState.COMPLETE else max(value, least)
        for t, value in zip(ended, values, strict=True)
    ]


def _copied(trial: FrozenTrial, space: Mapping[str, BaseDistribution], **ending: Any) -> FrozenTrial:
    params = {name: trial.params[name] for name in space}
    return create_trial(params=params, distributions=dict(space), **ending)
