"""Measurement of seconds and bytes."""

import statistics

import pytest
import torch

from loopwise.compile.search.measure import (
    FEWEST,
    LEAST,
    median,
    memory_changes,
    peak_bytes,
    peak_of,
    seconds,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("values", [[3.0], [2.0, 1.0], [5.0, 1.0, 2.0], [4.0, 1.0, 3.0, 2.0]])
def test_the_median_is_that_of_statistics(values):
    assert median(values) == statistics.median(values)


def test_the_peak_is_the_largest_sum_of_changes():
    assert peak_of([]) == 0
    assert peak_of([-3, 1]) == 0
    assert peak_of([4, -2, 5, -7]) == 7


def test_allocations_of_a_step_are_seen_in_their_order():
    def step():
        first = torch.ones(256)
        second = torch.ones(512)
        del first, second

    assert sum(memory_changes(step, CPU)) == 0
    assert memory_changes(step, CPU)[:2] == [1024, 2048]
    assert peak_bytes(step, CPU) == 3072


def test_steps_are_timed_in_turns_and_fewer_times_once_the_budget_is_spent():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert [len(times) for times in seconds(steps, CPU, repeats=6, warm=1).values()] == [6, 6]
    assert "".join(calls) == "ab" * 7
    assert [len(times) for times in seconds(steps, CPU, repeats=6, warm=1, budget=0.0).values()] == [
        FEWEST
    ] * 2


def test_four_repeats_are_enough_once_the_budget_is_spent(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("loopwise.compile.search.measure.time.perf_counter", lambda: float(next(clock)))
    times = seconds({"a": lambda: None}, CPU, repeats=9, warm=0, budget=8.0)
    assert times == {"a": [1.0] * LEAST}  # three ticks of the clock for each repeat


def test_a_step_that_is_clearly_slower_is_timed_no_more(monkeypatch):
    now = [0.0]

    def step(seconds_):
        now[0] += seconds_

    monkeypatch.setattr("loopwise.compile.search.measure.time.perf_counter", lambda: now[0])
    steps = {"fast": lambda: step(1.0), "near": lambda: step(1.2), "slow": lambda: step(1.3)}
    counts = {name: len(times) for name, times in seconds(steps, CPU, 5, 0, drop=1.25).items()}
    assert counts == {"fast": 5, "near": 5, "slow": FEWEST}
