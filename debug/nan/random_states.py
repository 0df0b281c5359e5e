"""Random states that models draw from, taken at each call of a model.

NumPy's is left out, which takes longer than all others together.  ``random.getstate`` takes 15 microseconds for a tuple of
625 numbers, so that the memory of Python's generator is copied instead, and is decoded if it is needed.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Mapping
from typing import Any

import torch

from loopwise import random_state

_generator: Any = getattr(random.getstate, "__self__", None)
"""Generator behind the functions of ``random``."""


def take() -> dict[str, Any]:
    """Return the present states, of which ``plain`` makes plain values."""
    python = random.getstate() if _memory is None else (bytes(_memory), _generator.gauss_next)
    return {"torch": torch.default_generator.get_state(), "devices": random_state.devices(), "python": python}


def plain(states: Mapping[str, Any]) -> dict[str, Any]:
    """Return states as plain values and tensors that ``torch.save`` takes."""
    python = states["python"]
    if len(python) == 2:
        python = (random.Random.VERSION, _decoded(python[0]), python[1])
    return {**states, "python": python}


def restore(states: Mapping[str, Any]) -> None:
    """Restore the states."""
    torch.set_rng_state(states["torch"])
    for name, device_states in states["devices"].items():
        getattr(torch, name).set_rng_state_all(device_states)
    version, internal, gauss = plain(states)["python"]
    random.setstate((version, tuple(internal), gauss))


def _decoded(memory: bytes) -> tuple[int, ...]:
    """Return the state as ``random.getstate`` does: in memory, the position comes before the numbers."""
    position, *numbers = memoryview(memory).cast("I")
    return *numbers, position


def _located() -> Any:
    """Return the memory of the generator that holds its state; ``None`` if it is not as expected."""
    if sys.implementation.name != "cpython" or type(_generator) is not random.Random:
        return None
    size: int = random.Random.__base__.__basicsize__  # type: ignore[union-attr]
    words = list((ctypes.c_uint32 * (size // 4)).from_address(id(_generator)))
    *numbers, position = random.getstate()[1]
    state = [position, *numbers]
    starts = range(len(words) - len(state) + 1)
    start = next((start for start in starts if words[start : start + len(state)] == state), None)
    if start is None:
        return None
    return (ctypes.c_uint32 * len(state)).from_address(id(_generator) + 4 * start)


_memory = _located()
