"""Random states of Python, NumPy, torch and generators, as one value that can be saved and restored."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def get(generators: Sequence[torch.Generator] = ()) -> dict[str, Any]:
    """Return the present states, as plain values and tensors that ``torch.save`` takes."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.array(keys, dtype=np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "devices": devices(),
        "generators": [generator.get_state() for generator in generators],
    }


def set(state: dict[str, Any], generators: Sequence[torch.Generator] = ()) -> None:
    """Restore the states that ``get`` returned for the same generators."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    for name, states in state["devices"].items():
        getattr(torch, name).set_rng_state_all(states)
    for generator, saved in zip(generators, state["generators"], strict=True):
        generator.set_state(saved)


def devices() -> dict[str, list[torch.Tensor]]:
    """Return the random states of the accelerators that this process has initialised, by backend."""
    states = {}
    for name in ("cuda", "xpu"):
        module = getattr(torch, name, None)
        if module is not None and module.is_initialized():
            states[name] = module.get_rng_state_all()
    return states
