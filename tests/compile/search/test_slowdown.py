"""The watch over step times: contests only when there is cause, and verdicts only when they are clear."""

from loopwise.compile.search.slowdown import REST, TURNS, WINDOW, Pace


def run(pace, compiled, eager, steps=1000):
    """Steps in each form until a verdict."""
    counts = {True: 0, False: 0}
    for number in range(steps):
        turn = pace.eager_turn
        counts[turn] += 1
        pace.note(eager if turn else compiled(number) if callable(compiled) else compiled, turn)
        if pace.verdict:
            break
    return counts


def test_a_fast_step_is_left_alone():
    assert run(Pace(1.0), 0.8, 1.0) == {True: 0, False: 1000}


def test_a_step_that_became_slow_steps_back():
    pace = Pace(1.0)
    counts = run(pace, lambda number: 0.8 if number < 100 else 1.5, 1.0)
    assert pace.verdict == "slower than the eager step, in turns with it: 1500.0 ms beside 1000.0"
    assert counts[True] == TURNS
    assert counts[False] <= 100 + WINDOW + TURNS


def test_a_machine_that_became_slow_for_both():
    pace = Pace(1.0)
    counts = run(pace, 1.6, 2.0)
    assert pace.verdict == ""
    assert counts[True] == TURNS  # one contest showed that the eager step is slower still


def test_contests_are_rare():
    pace = Pace(1.0)
    counts = run(pace, 1.02, 1.0)
    assert pace.verdict == ""
    assert counts[True] <= TURNS * (1000 // REST + 1)
