"""Random states of torch, NumPy and Python as bytes.

The bytes are: the length of torch's state, that state, a byte 0 and the fixed form of NumPy's and Python's states
(their 624 words, position, and the normal variate that was drawn in advance), or a byte 2 and both as JSON if a program
replaced NumPy's global generator; an array is an object with ``dtype`` and ``array`` there.  The bytes travel with
checkpoints, so that they hold nothing that could run code.
"""

from __future__ import annotations

import json
import random
import struct
from array import array
from typing import Any

import numpy as np
import torch

from loopwise.errors import StateError

from ..torch_internals import numpy_seed

_TAIL = struct.Struct("<qqdqd")
"""NumPy's position, whether it has a variate, the variate, whether Python has one, the variate."""
_WORDS = 624 * 4
"""Bytes of the words of NumPy's state; Python's has the position as one word more."""


def get() -> bytes:
    """Return the present states of the three global generators, about 10 KB."""
    torch_state = torch.default_generator.get_state().numpy().tobytes()
    state: Any = np.random.get_state(legacy=False)
    version, words, python_variate = random.getstate()
    head = struct.pack("<I", len(torch_state)) + torch_state
    if state["bit_generator"] != "MT19937" or version != 3:
        return head + b"\2" + json.dumps([state, random.getstate()], default=_plain).encode()
    tail = _TAIL.pack(
        state["state"]["pos"],
        state["has_gauss"],
        state["gauss"],
        python_variate is not None,
        0.0 if python_variate is None else python_variate,
    )
    return b"".join((head, b"\0", state["state"]["key"].tobytes(), array("I", words).tobytes(), tail))


def set(state: bytes) -> None:
    """Restore states of ``get``."""
    (length,) = struct.unpack_from("<I", state)
    torch.default_generator.set_state(torch.frombuffer(bytearray(state[4 : 4 + length]), dtype=torch.uint8))
    at = 4 + length
    if state[at] == 2:
        numpy_state, (version, words, variate) = json.loads(state[at + 1 :], object_hook=_array)
        np.random.set_state(numpy_state)
        random.setstate((version, tuple(words), variate))
        return
    if state[at] != 0:
        raise StateError(
            f"a random state of the kind {state[at]}",
            "a state of this version",
            "another version wrote the checkpoint, or it is damaged",
            "begin the epoch anew, without this state",
        )
    at += 1
    keys = np.frombuffer(state, np.uint32, 624, at)
    python_words = array("I")
    python_words.frombytes(state[at + _WORDS : at + 2 * _WORDS + 4])
    position, has_variate, variate, has_python, python = _TAIL.unpack_from(state, at + 2 * _WORDS + 4)
    np.random.set_state(("MT19937", keys, position, has_variate, variate))
    random.setstate((3, tuple(python_words), python if has_python else None))


def _plain(value: Any) -> Any:
    """Return a NumPy array or number of a generator's state as JSON has it."""
    return (
        {"dtype": value.dtype.name, "array": value.tolist()}
        if isinstance(value, np.ndarray)
        else value.item()
    )


def _array(value: dict[str, Any]) -> Any:
    """Return the array of an object that ``_plain`` made, and other objects as they are."""
    if value.keys() != {"dtype", "array"} or value["dtype"] not in ("uint32", "uint64"):
        return value
    return np.array(value["array"], value["dtype"])


def seed_lane(base_seed: int, lane: int) -> int:
    """Seed the generators as DataLoader seeds those of worker ``lane``, and return the seed."""
    seed = base_seed + lane
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(numpy_seed(base_seed, lane))
    return seed


def mix(*numbers: int) -> int:
    """Return a 63-bit number that depends on all of the numbers (splitmix64, by Steele, Lea and Flood)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def seed_sample(*numbers: int) -> None:
    """Seed the generators by the numbers that identify a sample.

    ``torch.manual_seed`` would also visit the accelerators, which takes a hundred times as long.
    """
    seed = mix(*numbers)
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
