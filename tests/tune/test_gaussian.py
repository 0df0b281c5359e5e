"""Search by a Gaussian process: start points, the scale of values, stopped trials, repetition, and when TPE takes over."""

import logging
import math

import numpy as np
import optuna
import pytest
from optuna._gp import optim_mixed
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.trial import TrialState, create_trial

from loopwise.tune import job_of
from loopwise.tune.search import gaussian
from loopwise.tune.search.gaussian import START, GaussianSampler, compressed, start_point, suits
from loopwise.tune.search.samplers import sampler_of
from loopwise.tune.search.storage import open_storage
from loopwise.tune.search.study import Study

SPACE = {
    "rate": FloatDistribution(1e-5, 1e-1, log=True),
    "share": FloatDistribution(-1.0, 3.0),
    "width": IntDistribution(1, 4),
    "units": IntDistribution(1, 1024, log=True),
    "kind": CategoricalDistribution(["a", "b", "c"]),
}


def job(**changes):
    content = {
        "command": "true",
        "parameters": {"x": {"type": "continuous", "low": -1.0, "high": 1.0}},
        "metrics": [{"name": "loss", "regex": r"(\S+)"}],
        "objective": {"metric": "loss", "goal": "minimize"},
        "limits": {"trials": 30},
    }
    return job_of(content | changes, "job")


def searched(study, trials, function):
    values = []
    for _ in range(trials):
        number, drawn = study.ask()
        values.append(drawn["x"])
        study.tell(number, 0, [function(values[-1])], False)
    return values


def test_start_points_fill_the_space():
    points = [start_point(SPACE, 7, number) for number in range(16)]
    assert all(
        SPACE[name]._contains(SPACE[name].to_internal_repr(value))
        for p in points
        for name, value in p.items()
    )
    for name, log in (("rate", True), ("share", False)):
        part = SPACE[name]
        shares = [
            math.log(p[name] / part.low) / math.log(part.high / part.low)
            if log
            else (p[name] - part.low) / (part.high - part.low)
            for p in points
        ]
        assert sorted(int(16 * share) for share in shares) == list(range(16))
    assert {p["width"] for p in points} == {1, 2, 3, 4}
    assert {p["kind"] for p in points} == {"a", "b", "c"}
    assert points[5] == start_point(SPACE, 7, 5) != start_point(SPACE, 8, 5)


def test_values_above_the_median_count_by_their_logarithm():
    values = [0.0, 1.0, 2.0, 4.0, 1e9]
    result = compressed(values)
    assert list(result[:3]) == values[:3]
    assert list(result) == sorted(result)
    assert result[-1] < 50
    np.testing.assert_allclose(compressed([10 * v + 3 for v in values]), 10 * result + 3)
    assert list(compressed([1.0, 1.0, 1.0, 5.0])) == [1.0, 1.0, 1.0, 5.0]  # the median is the best value


def test_optuna_does_not_warn_for_each_trial_near_an_optimum():
    assert not optim_mixed._logger.isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_a_parabola_is_found_and_a_resumed_search_is_the_same(tmp_path, goal):
    sign = 1 if goal == "minimize" else -1
    described = job(objective={"metric": "loss", "goal": goal})

    def function(x):
        return sign * (x - 0.3) ** 2

    whole = searched(Study(described, open_storage(None, tmp_path / "a")), START + 6, function)
    assert min(abs(x - 0.3) for x in whole) < 0.01
    first = searched(Study(described, open_storage(None, tmp_path / "b")), START + 2, function)
    rest = searched(Study(described, open_storage(None, tmp_path / "b")), 4, function)
    assert first + rest == whole


def test_trials_that_run_are_not_proposed_again(tmp_path):
    study = Study(job(), open_storage(None, tmp_path / "journal"))
    searched(study, START, lambda x: x * x)
    running = [study.ask()[1]["x"] for _ in range(4)]
    assert min(abs(a - b) for i, a in enumerate(running) for b in running[:i]) > 0.01


def test_a_stopped_trial_counts_as_not_better_than_the_median():
    study = optuna.create_study()
    for x, value in ((-1.0, 3.0), (-0.5, 2.0), (0.0, 1.0)):
        study.add_trial(
            create_trial(params={"x": x}, distributions={"x": FloatDistribution(-1, 1)}, value=value)
        )
    stopped = create_trial(
        state=TrialState.PRUNED, value=0.1, params={"x": 1.0}, distributions={"x": FloatDistribution(-1, 1)}
    )
    study.add_trial(stopped)
    assert gaussian._values(study, gaussian._ended(study)) == [3.0, 2.0, 1.0, 2.0]


def test_tpe_takes_over(monkeypatch):
    assert isinstance(sampler_of("bayesian", 0, 0, SPACE, 0), GaussianSampler)
    assert isinstance(sampler_of("bayesian", 0, 500, SPACE, gaussian.TRIALS + 1), TPESampler)
    assert isinstance(sampler_of("hyperband", 0, 0, SPACE, 0), TPESampler)
    assert isinstance(sampler_of("bayesian", 0, 0, SPACE, 0, objectives=2), TPESampler)
    many = {f"x{number}": FloatDistribution(0, 1) for number in range(gaussian.PARAMETERS + 1)}
    assert isinstance(sampler_of("bayesian", 0, 0, many, 0), TPESampler)
    monkeypatch.setattr(gaussian, "find_spec", lambda name: None)
    assert not suits(SPACE, 0)


def test_one_value_and_failed_trials(tmp_path):
    described = job(
        parameters={
            "x": {"type": "continuous", "low": -1.0, "high": 1.0},
            "only": {"type": "categorical", "values": ["a"]},
        }
    )
    study = Study(described, open_storage(None, tmp_path / "journal"))
    for number in range(START + 3):
        _, values = study.ask()
        assert values["only"] == "a"
        study.tell(number, 0, None if number == 1 else [values["x"] ** 2], False)
