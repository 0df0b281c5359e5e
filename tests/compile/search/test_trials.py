"""Trials of plans: what is not compared, since it would not be chosen, and comparisons that end with the search."""

import math

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.graph.passes import USUAL
from loopwise.compile.search import trials as module
from loopwise.compile.search.attempts import tried
from loopwise.compile.search.candidates import Candidate
from loopwise.compile.search.deadline import Deadline
from loopwise.compile.search.trials import LONG, NOTHING, SLOWER, Trials
from loopwise.compile.verify.numerics import Comparison, NoTime, compare

EAGER = [1.0, 1.2, 1.1]


@pytest.fixture
def trials(monkeypatch):
    """Return trials of a convolution, whose comparisons need further passes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), plan=Plan())
    made = Trials(Comparison(step.spec, (torch.randn(4, 2, 8, 8), torch.arange(4) % 3)), Deadline(60))
    made.eager = Candidate(Plan(), compute=step.spec.eager, times=[1.0])
    monkeypatch.setattr(Comparison, "is_near", lambda comparison, observed: False)
    return made


def time_by(monkeypatch, times):
    """Let candidates take the times of a list, and the eager step ``EAGER``."""

    def given(candidates, sandbox, repeats):
        assert repeats == len(times)
        for candidate in candidates:
            candidate.times = EAGER if candidate.plan == Plan() else times

    monkeypatch.setattr(module, "time_candidates", given)


def refuse_comparisons(monkeypatch):
    def difference(*_):
        raise AssertionError("it was compared")

    monkeypatch.setattr(Comparison, "difference", difference)


def test_a_candidate_that_is_slower_in_each_pass_is_not_compared(trials, monkeypatch):
    time_by(monkeypatch, [1.3, 1.21, 1.4])
    refuse_comparisons(monkeypatch)
    candidate = trials.attempt(layout="channels_last")
    assert candidate.refused == SLOWER
    assert candidate.compute is None
    assert candidate.times == [1.3, 1.21, 1.4]  # explain() shows them


def test_a_candidate_that_may_win_is_compared(trials, monkeypatch):
    time_by(monkeypatch, [1.3, 1.19, 1.4])
    candidate = trials.attempt(layout="channels_last")
    assert (candidate.refused, candidate.times) == ("", [])
    assert candidate.compute is not None


@pytest.mark.parametrize("seconds", [LONG / 2, None])
def test_a_step_that_is_short_or_not_timed_is_compared_at_once(trials, monkeypatch, seconds):
    monkeypatch.setattr(module, "time_candidates", None)  # it would fail
    trials.eager = None if seconds is None else Candidate(Plan(), times=[seconds])
    assert trials.attempt(layout="channels_last").refused == ""


def test_a_graph_in_which_nothing_was_rewritten_is_not_compared_and_no_candidate(trials, monkeypatch):
    refuse_comparisons(monkeypatch)
    assert trials.attempt(graph="captured", passes=tuple(USUAL[1:])).refused == NOTHING
    monkeypatch.setattr(module, "try_plan", lambda spec, plan, *_: Candidate(plan, refused=NOTHING))
    assert not any(one.plan.passes for one in tried(trials, trials.eager))


def test_a_comparison_has_as_long_as_the_compilation_and_a_quarter_of_what_is_left(monkeypatch):
    limited = Deadline(60)
    monkeypatch.setattr(Deadline, "elapsed", 20.0)
    assert limited.comparing(compiled=5.0) == 15
    monkeypatch.setattr(Deadline, "elapsed", 80.0)
    assert limited.comparing(compiled=5.0) == 5


def test_a_comparison_that_takes_too_long_ends(trials, monkeypatch):
    expected = trials.comparison.reference()
    observed = expected.eager | {"loss": expected.eager["loss"] * 1.01}
    assert compare(observed, expected).tensor == "loss"
    with pytest.raises(NoTime):
        compare(observed, expected, ends=-math.inf)
    assert compare(expected.eager, expected, ends=-math.inf) is None  # it takes no perturbed pass

    def late(comparison, compute, first=None):
        assert 0 < comparison.ends < math.inf
        return compare(observed, expected, ends=-math.inf)

    monkeypatch.setattr(Comparison, "difference", late)
    time_by(monkeypatch, [1.0, 1.0, 1.0])
    assert (
        trials.attempt(layout="channels_last").refused == "not compared to the end: would exceed max_seconds"
    )
