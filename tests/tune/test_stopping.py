"""Early stopping by running averages, and the end of a job that improves no more."""

import math

import pytest

from loopwise.tune.search.completion import improves_no_more
from loopwise.tune.search.stopping import averages, is_worse

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
    ("values", "over"),
    [
        ([1.0, 0.995, 1.2, 1.1], True),  # better, by less than 1 %
        ([1.0, 0.98, 1.2, 1.1], False),
        ([1.0, 2.0, 3.0], False),  # too few
        ([-1.0, -1.005, 0.0, 0.0], True),
        ([-1.0, -1.02, 0.0, 0.0], False),
    ],
)
def test_a_job_that_improves_no_more(values, over):
    assert improves_no_more(values, 3, maximize=False) is over
    assert improves_no_more([-v for v in values], 3, maximize=True) is over
