"""Early stopping by running averages, and the end of a job that improves no more."""

import math

import pytest
from tune_kit import job

from loopwise.tune import run
from loopwise.tune.search.completion import converged, improves_no_more
from loopwise.tune.search.stopping import MedianRule, averages, is_worse
from loopwise.tune.trials import Trial, recorded

FINISHED = [averages([value] * 6) for value in (4.0, 3.0, 2.0, 1.0, 2.5)]


def test_running_averages():
    assert list(averages([4.0, 2.0, 0.0])) == [4.0, 3.0, 2.0]
    assert list(averages([])) == []
    assert list(averages([4.0, math.nan, math.inf, 2.0])) == [4.0, 4.0, 4.0, 3.0]
    assert math.isnan(averages([math.nan])[0])


@pytest.mark.parametrize(
    ("curve", "worse"),
    [
        ([1.0, 9.0], True),  # the present value decides, not the best one so far
        ([9.0, 9.0, 9.0, 1.5], False),
        ([1.0, 2.5], False),  # level with the median
        ([1.0, 2.6], True),
        ([9.0], False),  # a first report
        ([], False),
        ([math.nan], False),
        ([9.0] * 7, False),  # longer than all others
    ],
)
def test_the_present_value_is_compared_with_the_median_of_averages(curve, worse):
    assert is_worse(curve, FINISHED, maximize=False) is worse
    negative = [[-v for v in other] for other in FINISHED]
    assert is_worse([-v for v in curve], negative, maximize=True) is worse


def test_averages_and_not_values_are_compared():
    finished = [averages([9.0, 1.0])] * 5  # average 5 at the second report
    assert not is_worse([9.0, 4.0], finished, maximize=False)
    assert is_worse([9.0, 6.0], finished, maximize=False)


def test_few_finished_trials_decide_nothing():
    assert not is_worse([1.0, 99.0], FINISHED[:3], maximize=False)
    assert not is_worse([1.0, 99.0], [*FINISHED[:3], [math.nan, math.nan]], maximize=False)
    assert is_worse([1.0, 99.0], FINISHED[:4], maximize=False)


@pytest.mark.parametrize(
    ("reports", "known", "stops"),
    [
        ([1.0, 9.0, 1.0], 0, True),  # three came between two looks, and the second one is worse
        ([1.0, 9.0, 1.0], 1, True),
        ([1.0, 9.0, 1.0], 2, False),  # it was judged, when fewer trials had finished
        ([9.0, 1.0, 1.0], 0, False),  # a first report
        ([1.0, 1.0, 9.0], 2, True),
        ([1.0, 9.0], 3, False),  # a tuner that takes a trial over reads a long log in several looks
    ],
)
def test_each_report_is_judged_once_and_at_its_own_place(reports, known, stops):
    rule = MedianRule(maximize=False)
    for average in FINISHED:
        rule.ended(Trial(0, {}, state="finished", reports=list(average)))
    assert bool(rule.verdict(Trial(9, {}, reports=reports), known)) is stops


@pytest.mark.parametrize(
    ("values", "over"),
    [
        ([1.0, 0.995, 1.2, 1.1], True),  # better, by less than 1 %
        ([1.0, 0.98, 1.2, 1.1], False),
        ([1.0, 2.0, 3.0], False),  # too few
        ([-1.0, -1.005, 0.0, 0.0], True),
        ([-1.0, -1.02, 0.0, 0.0], False),
        ([0.0, 0.0, 0.5, 0.0], True),  # an error rate cannot be below 0
    ],
)
def test_a_job_that_improves_no_more(values, over):
    assert improves_no_more(values, 3, maximize=False) is over
    assert improves_no_more([-v for v in values], 3, maximize=True) is over


FALLING = [10.0, 8.0, 6.0, 4.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("values", "parameters", "expected"),
    [
        ([*FALLING, *[5.0] * 20], 2, True),
        ([*FALLING, *[5.0] * 19], 2, False),  # too few
        ([*FALLING, *[5.0] * 20], 5, False),  # 25 are needed for five parameters
        ([*FALLING, *[5.0] * 25], 5, True),
        ([*FALLING, *[5.0] * 19, 0.97], 2, True),  # better by less than 1 % of the distance 4 from the median
        ([*FALLING, *[5.0] * 19, 0.95], 2, False),
        ([v - 1.0 for v in (*FALLING, *[5.0] * 20)], 2, True),  # the best one is 0
        ([1.0] * 21, 1, True),
        ([1.0] * 20, 1, False),
    ],
)
def test_a_search_that_has_converged(values, parameters, expected):
    assert converged(values, parameters, maximize=False) is expected
    assert converged([-v for v in values], parameters, maximize=True) is expected


def test_a_job_ends_when_its_search_has_converged(tmp_path):
    parameters = {"x": {"type": "categorical", "values": [1, 2, 3]}}
    command = "sh -c 'echo \" loss={x}\"'"
    limits = {"trials": 200, "parallel": 2, "convergence": True}
    run(job(command, parameters=parameters, limits=limits), str(tmp_path / "run"))
    trials = recorded(str(tmp_path / "run"))
    assert 20 < len(trials) < 60
    assert min(trial.objective for trial in trials) == 1
