"""Plans that are tried: Inductor compiles once by default, by what has proved to pay without it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from loopwise.compile import Plan
from loopwise.compile.graph.backend import Log
from loopwise.compile.graph.passes import Outcome
from loopwise.compile.search import attempts
from loopwise.compile.search.attempts import tried
from loopwise.compile.search.candidates import Candidate


class Trials:
    """Trials whose times and results are given, by the word in front of a plan."""

    def __init__(self, net, seconds, saved=0, wrong=(), regions=False, autotune="default"):
        optimizer = torch.optim.SGD(net.parameters())
        self.spec = SimpleNamespace(
            model=net, optimizer=optimizer, device=torch.device("cpu"), memory=None, autotune=autotune
        )
        self._seconds, self._saved, self._wrong, self._regions = seconds, saved, wrong, regions
        self.plans = []

    def attempt(self, insist=True, **changes):
        plan = Plan(**changes)
        self.plans.append(str(plan))
        candidate = Candidate(plan.changed(regions=plan.regions and self._regions), log=Log(graphs=1))
        if "loss_head" in plan.passes:
            candidate.log.outcomes = [Outcome(True, "here", saved_bytes=self._saved, name="loss_head")]
        if str(plan) in self._wrong:
            candidate.refused = "wrong"
        else:
            candidate.compute = torch.nn.Identity()
        return candidate

    def time_shortly(self, candidates, repeats=3):
        for one in candidates:
            one.times = [self._seconds[str(one.plan)]] * repeats if one.compute is not None else []


def compiled(trials):
    """Return the plans that Inductor compiled."""
    eager = Candidate(Plan(), compute=torch.nn.Identity(), times=[1.0])
    tried(trials, eager)
    return [plan for plan in trials.plans if plan.startswith("inductor")]


DENSE, IMAGES = nn.Linear(2, 2), nn.Conv2d(3, 4, 3)
PASSED = "captured + loss head"


@pytest.mark.parametrize(
    ("seconds", "saved", "expected"),
    [
        (2.0, 16 * 2**20, "inductor + loss head + regions"),  # much memory, whatever the time
        (0.9, 0, "inductor + loss head + regions"),
        (1.0, 2**20, "inductor + loss head + regions"),
        (1.1, 2**20, "inductor + regions"),
        (1.0, 100, "inductor + regions"),  # passes that gain nothing
    ],
)
def test_passes_are_compiled_if_they_pay_without_a_compiler(seconds, saved, expected):
    trials = Trials(DENSE, {"eager": 1.0, PASSED: seconds}, saved)
    assert compiled(trials) == [expected]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.9, "inductor + channels_last + regions"), (1.0, "inductor + regions")]
)
def test_a_layout_is_compiled_if_it_pays_without_a_compiler(seconds, expected):
    times = {"eager": 1.0, PASSED: 1.0, "eager + channels_last": seconds}
    assert compiled(Trials(IMAGES, times)) == [expected]


def test_another_compilation_follows_one_that_was_refused():
    first = "inductor + loss head + regions"
    trials = Trials(DENSE, {"eager": 1.0, PASSED: 0.5}, wrong=[first])
    assert compiled(trials) == [first, "inductor + regions"]
    trials = Trials(DENSE, {"eager": 1.0, PASSED: 1.0}, wrong=["inductor + regions"])
    assert compiled(trials) == ["inductor + regions"]


@pytest.mark.parametrize("regions", [True, False])
def test_autotune_max_compiles_in_all_ways_once(regions):
    trials = Trials(DENSE, {"eager": 1.0, PASSED: 0.5}, regions=regions, autotune="max")
    plans = compiled(trials)
    assert len(set(plans)) == len(plans)
    whole = ["inductor + loss head"] if regions else []
    assert plans == [
        "inductor + loss head + regions",
        "inductor + regions",
        *whole,
        "inductor + loss head + max autotune",
    ]


def test_a_wrong_pass_is_left_out_of_what_is_compiled():
    together = str(Plan(graph="captured", passes=attempts.USUAL))
    times = dict.fromkeys(("eager", "captured + attention", "captured + short attention"), 1.0) | {
        PASSED: 0.5
    }
    trials = Trials(DENSE, times, saved=16 * 2**20, wrong=[together])
    assert compiled(trials) == ["inductor + loss head + regions"]
