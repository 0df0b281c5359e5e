"""Sift, compile, debug and feed in one training that is killed and goes on: as if it had not been killed."""

import subprocess
import time

import all_parts_kit
import forks
import numpy as np
import pytest

from loopwise.debug import open_run

STEPS = 48


def begin(folder):
    return subprocess.Popen([forks.python(), all_parts_kit.__file__, str(folder), str(STEPS)])


def killed_at(folder, step):
    """Begin or go on, and kill the process with its workers' parent as soon as a step is done."""
    process = begin(folder)
    notes = folder / "steps.jsonl"
    while not (
        notes.exists() and notes.read_text().endswith("\n") and max(all_parts_kit.noted(folder)) >= step
    ):
        assert process.poll() is None, "the training ended before it could be killed"
        time.sleep(0.005)
    forks.kill(process)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert begin(folder).wait() == 0
    return folder


def test_batches_weights_and_the_run_are_those_of_an_uninterrupted_training(uninterrupted, tmp_path):
    for step in (3, 17, 34):  # before the first checkpoint, in the first epoch, and in a later one
        killed_at(tmp_path, step)
    assert begin(tmp_path).wait() == 0
    one, other = all_parts_kit.noted(uninterrupted), all_parts_kit.noted(tmp_path)
    assert list(one) == sorted(other) == list(range(1, STEPS + 1))
    assert [step for step in one if one[step] != other[step]] == []
    of = [open_run(folder / "run") for folder in (uninterrupted, tmp_path)]
    assert [saved.steps() for saved in of] == [list(range(0, STEPS, 3))] * 2
    for one, other in zip(*(saved.series("loss") for saved in of), strict=True):
        np.testing.assert_array_equal(one, other)
