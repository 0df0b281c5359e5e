"""Public names that are imported when they are first used."""

import subprocess
import sys

import pytest

import loopwise.debug


def test_names_are_listed_before_they_are_imported():
    code = "import sys, loopwise.debug as d; assert 'Watch' in dir(d); assert 'loopwise.debug.watch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_is_imported_once():
    assert loopwise.debug.Watch is vars(loopwise.debug)["Watch"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'loopwise.debug' has no attribute 'Wacht'"):
        _ = loopwise.debug.Wacht


def test_the_names_of_all_parts_are_imported_when_they_are_used():
    code = (
        "import sys, loopwise; assert 'torch' not in sys.modules; "
        "assert loopwise.Watch.__module__ == 'loopwise.debug.watch'; assert 'loopwise.sift' not in sys.modules; "
        "from loopwise import RemoteDataLoader, Run, SiftingDataLoader, TrainStep, every"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
