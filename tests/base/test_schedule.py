"""Schedules: contract over all of them, and their combinations."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopwise.errors import InputError
from loopwise.schedule import at, between, every

simple = st.one_of(
    st.builds(every, st.integers(1, 9), start=st.integers(0, 9)),
    st.builds(at, st.lists(st.integers(0, 30), max_size=5)),
    st.integers(0, 20).flatmap(lambda a: st.builds(between, st.just(a), st.none() | st.integers(a, 30))),
)


@given(simple, simple, st.integers(0, 40))
def test_combinations_are_boolean_algebra(a, b, step):
    assert (a | b)(step) == (a(step) or b(step))
    assert (a & b)(step) == (a(step) and b(step))
    assert (~a)(step) == (not a(step))


@given(simple)
def test_schedules_are_values(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert hash(schedule) == hash(pickle.loads(pickle.dumps(schedule)))


def test_steps():
    assert [s for s in range(12) if every(5)(s)] == [0, 5, 10]
    assert [s for s in range(12) if every(5, start=2)(s)] == [2, 7]
    assert [s for s in range(12) if at([3, 1])(s)] == [1, 3]
    assert [s for s in range(12) if between(8)(s)] == [8, 9, 10, 11]
    assert [s for s in range(12) if (between(2, 9) & every(3) | at([11]))(s)] == [3, 6, 11]


@pytest.mark.parametrize(
    "make", [lambda: every(0), lambda: every(2.5), lambda: at([-1]), lambda: between(5, 4)]
)
def test_bad_steps_are_refused(make):
    with pytest.raises(InputError, match="whole number"):
        make()
