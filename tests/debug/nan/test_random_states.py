"""Random states before a call, which are taken from memory and decoded only if they are needed."""

import pickle
import random

import pytest
import torch

from loopwise.debug.nan import random_states


@pytest.mark.parametrize("copied", [True, False], ids=["from memory", "by getstate"])
def test_states_are_restored(monkeypatch, copied):
    if not copied:
        monkeypatch.setattr(random_states, "_memory", None)
    before = random.getstate()
    try:
        random.seed(5)
        for drawn in range(700):  # the position passes the end of the state
            states = random_states.take()
            expected = [random.random(), random.gauss(0, 1), torch.rand(2)] if drawn % 50 == 0 else []
            if expected:
                random_states.restore(states)
                again = [random.random(), random.gauss(0, 1), torch.rand(2)]
                assert again[:2] == expected[:2]
                assert torch.equal(again[2], expected[2])
            random.random()
    finally:
        random.setstate(before)


def test_plain_states_are_those_of_getstate():
    states = random_states.plain(random_states.take())
    assert states["python"] == random.getstate()
    assert pickle.loads(pickle.dumps(states))["python"] == random.getstate()
    assert random_states.plain(states) == states
    assert random_states._memory is not None  # on this interpreter the fast way is taken
