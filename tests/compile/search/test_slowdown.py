"""Slowdown monitor: a contest needs a cause, and a decision needs a clear difference."""

from loopwise.compile.search.slowdown import CONTEST, PAUSE, WINDOW, SlowdownMonitor


def run(monitor, compiled, eager, steps=1000):
    """Run steps until the monitor decides; return the number of eager (``True``) and compiled steps."""
    counts = {True: 0, False: 0}
    for number in range(steps):
        turn = monitor.wants_eager
        counts[turn] += 1
        monitor.add(eager if turn else compiled(number) if callable(compiled) else compiled, turn)
        if monitor.reason:
            break
    return counts


def test_a_fast_step_is_left_alone():
    assert run(SlowdownMonitor(1.0), 0.8, 1.0) == {True: 0, False: 1000}


def test_a_step_that_became_slow_steps_back():
    monitor = SlowdownMonitor(1.0)
    counts = run(monitor, lambda number: 0.8 if number < 100 else 1.5, 1.0)
    assert (
        monitor.reason == "slower than the eager step, measured in turns with it: 1500.0 ms against 1000.0 ms"
    )
    assert counts[True] == CONTEST
    assert counts[False] <= 100 + WINDOW + CONTEST


def test_a_machine_that_became_slow_for_both():
    monitor = SlowdownMonitor(1.0)
    counts = run(monitor, 1.6, 2.0)
    assert monitor.reason == ""
    assert counts[True] == CONTEST  # one contest showed that the eager step is slower still


def test_contests_are_rare():
    monitor = SlowdownMonitor(1.0)
    counts = run(monitor, 1.02, 1.0)
    assert monitor.reason == ""
    assert counts[True] <= CONTEST * (1000 // PAUSE + 1)
