"""Random states as bytes, which travel with checkpoints: they come back, and nothing in them is run."""

import pickle
import random
import struct

import numpy as np
import pytest
import torch

from loopwise.errors import StateError
from loopwise.feed.lanes import states


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()


@pytest.mark.parametrize("generator", [None, np.random.PCG64(7), np.random.SFC64(7), np.random.Philox(7)])
def test_states_come_back(generator):
    before = np.random.get_bit_generator()
    try:
        if generator is not None:
            np.random.set_bit_generator(generator)
        draws()
        state = states.get()
        drawn = draws()
        assert draws() != drawn
        states.set(state)
        assert draws() == drawn
    finally:
        np.random.set_bit_generator(before)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint was run",))


@pytest.mark.parametrize("kind", [1, 7])
def test_a_state_of_another_kind_is_refused(kind):
    own = torch.default_generator.get_state().numpy().tobytes()
    head = struct.pack("<I", len(own)) + own
    with pytest.raises(StateError, match=f"a random state of the kind {kind}"):
        states.set(head + bytes([kind]) + pickle.dumps(Trap()))
