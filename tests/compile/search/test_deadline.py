"""Bound of a search in time, and what is said meanwhile."""

import logging
import sys

import pytest
import torch
from torch import nn

from loopwise.compile import Plan, TrainStep
from loopwise.compile.search import attempts, deadline, progress
from loopwise.compile.search.deadline import FIRST, Deadline, repayable
from loopwise.errors import InputError

INDUCTOR = Plan(graph="inductor")


@pytest.fixture
def clock(monkeypatch):
    """Return the time as a list of one number, which a test may change."""
    now = [0.0]
    monkeypatch.setattr(deadline.time, "perf_counter", lambda: now[0])
    return now


def test_the_default_is_what_a_run_can_repay():
    assert repayable(0.001) == 10
    assert repayable(0.025) == pytest.approx(25)
    assert repayable(3) == 60


def test_by_default_the_first_compilation_is_begun_whatever_it_takes(clock):
    limited = Deadline(None)
    limited.adapt(0.001)
    assert limited.refusal(INDUCTOR, 10_000) == ""
    clock[0] = 8
    limited.record(INDUCTOR, 5.0, 50)
    text = "not tried: would exceed max_seconds (about 5 s, 2 of 10 s are left)"
    assert limited.refusal(INDUCTOR, 50) == text
    assert limited.refusal(INDUCTOR, 10) == ""  # a tenth of a second for an operation
    clock[0] = 11
    assert limited.refusal(Plan(graph="captured"), 50).endswith("0 of 10 s are left)")


def test_a_given_limit_holds_for_the_first_compilation_too(clock):
    limited = Deadline(20)
    limited.adapt(3)
    assert limited.limit == 20
    assert limited.refusal(INDUCTOR, int(19 / FIRST)) == ""
    assert limited.refusal(INDUCTOR, int(21 / FIRST)).startswith("not tried")


def test_candidates_without_a_compiler_are_estimated_by_each_other(clock):
    limited, captured = Deadline(10), Plan(graph="captured")
    assert limited.refusal(captured, 0) == ""
    limited.record(captured, 6.0, 0)
    clock[0] = 6
    assert limited.refusal(captured, 0).startswith("not tried")
    assert limited.refusal(INDUCTOR, 2) == ""


@pytest.mark.parametrize("value", [0, -1, True, "10", float("inf")])
def test_other_limits_are_refused_at_once(value):
    with pytest.raises(InputError) as raised:
        step_of(max_seconds=value)
    assert raised.value.args[0] == f"max_seconds={value!r}"
    assert raised.value.args[1] == "a number of seconds above 0"


def step_of(**options):
    net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
    return TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), **options)


BATCH = torch.randn(8, 6), torch.arange(8) % 3


def test_what_does_not_fit_is_named_in_the_table():
    step = step_of(max_seconds=1e-9)
    step.prepare(BATCH)
    assert step.plan.graph == "eager"
    rows = {row["form"]: row["verdict"] for row in step.explain().rows}
    refused = [
        form for form, verdict in rows.items() if verdict.startswith("not tried: would exceed max_seconds")
    ]
    assert any(form.startswith("inductor") for form in refused)
    assert "max_seconds was 0" in str(step.explain())


def test_a_longer_limit_does_not_recall_the_plan_of_a_shorter_one(monkeypatch):
    monkeypatch.setattr(attempts, "_by_inductor", lambda *_: [])
    short = step_of(max_seconds=1e-9)
    short.prepare(BATCH)
    again, longer = step_of(max_seconds=1e-9), step_of(max_seconds=1000)
    for step in (again, longer):
        step.prepare(BATCH)
    assert again.explain().source.startswith("remembered from")
    assert longer.explain().source == "measured now"


class Terminal:
    """Stream that may be a terminal."""

    def __init__(self, is_one):
        self.lines, self._is_one = [], is_one

    def isatty(self):
        return self._is_one

    def write(self, text):
        self.lines.append(text)

    def flush(self):
        pass


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_long_search_says_what_it_tries_on_a_terminal(monkeypatch, clock, is_terminal):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal(is_terminal))
    monkeypatch.setattr(progress.LOG, "isEnabledFor", lambda level: False)
    said = progress.Progress(Deadline(30))
    said.begin(Plan(graph="captured"), 0)
    assert terminal.lines == []
    clock[0] = 4
    said.begin(Plan(layout="channels_last"), 2.0)
    said.begin(INDUCTOR, 0)
    said.end(INDUCTOR)
    lines = "".join(terminal.lines).splitlines()
    expected = [
        "loopwise.compile: trying captured (0 s of at most 30 s)",
        "loopwise.compile: trying eager + channels_last, about 2 s (4 s of at most 30 s)",
        "loopwise.compile: trying inductor (4 s of at most 30 s)",
        "loopwise.compile: chosen: inductor (4 s)",
    ]
    assert lines == (expected if is_terminal else [])


def test_lines_go_to_the_log_instead_if_somebody_listens(monkeypatch, clock, caplog):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal(True))
    with caplog.at_level(logging.INFO, logger="loopwise.compile"):
        said = progress.Progress(Deadline(30))
        said.begin(INDUCTOR, 12.0)
        monkeypatch.setattr(progress, "is_main", lambda: False)
        said.end(INDUCTOR)  # another rank says nothing
    assert caplog.messages == ["trying inductor, about 12 s (0 s of at most 30 s)"]
    assert terminal.lines == []


def test_a_short_search_is_silent(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal(True))
    said = progress.Progress(Deadline(30))
    said.begin(Plan(graph="captured"), 0.5)
    said.end(Plan(graph="captured"))
    assert terminal.lines == []
