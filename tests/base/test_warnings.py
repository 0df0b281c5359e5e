"""Warnings that ask the user to act: their class, and the line that they point at."""

import warnings as python_warnings

import pytest

from loopwise import warnings


def test_a_warning_points_at_its_caller():
    with pytest.warns(warnings.LoopwiseWarning, match="^lower it$") as caught:
        warnings.warn("lower it")
    assert caught[0].filename == __file__


def test_a_warning_points_at_the_callers_caller():
    def inner():
        warnings.warn("lower it", stacklevel=2)

    with pytest.warns(warnings.LoopwiseWarning) as caught:
        inner()
    assert caught[0].lineno == inner.__code__.co_firstlineno + 4


def test_one_filter_silences_all():
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore", warnings.LoopwiseWarning)
        warnings.warn("lower it")
