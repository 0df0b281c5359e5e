"""Measurement of seconds and bytes."""

import statistics

import pytest
import torch

from loopwise.compile.search.measure import LEAST, median, memory_changes, peak_bytes, peak_of, seconds

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
        LEAST
    ] * 2
