"""As if we had not been there: run a forward pass and leave no trace of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def preserve(*modules: nn.Module, training: bool | None = None) -> Iterator[None]:
    """Restore, on leaving, everything a forward pass can change besides its result.

    Restored exactly, also when the body raises: the random state of Python, NumPy, the CPU and
    every initialised accelerator; each submodule's own ``training`` flag; and every buffer's
    value and identity (BatchNorm statistics and counters among them), without advancing the
    version counters that autograd checks.  Parameters are not copied: the body must not change
    them.

    Args:
        modules: the modules whose mode and buffers are kept.
        training: put every submodule into this mode inside the body; ``None`` leaves the modes.
    """
    states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    devices = _device_states()
    parts = [part for module in modules for part in module.modules()]
    modes = [part.training for part in parts]
    buffers = [(part, dict(part._buffers)) for part in parts if part._buffers]
    copies = {id(b): (b, b.detach().clone()) for _, kept in buffers for b in kept.values() if b is not None}
    try:
        if training is not None:
            for part in parts:
                part.training = training
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
        for part, kept in buffers:
            if not _same(part._buffers, kept):
                part._buffers.clear()
                part._buffers.update(kept)
        with torch.no_grad():
            for buffer, copy in copies.values():
                buffer.data.copy_(copy)  # .data: no version bump for a graph that saved it
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for module_name, state in devices.items():
            getattr(torch, module_name).set_rng_state_all(state)


def _same(now: dict[str, torch.Tensor | None], then: dict[str, torch.Tensor | None]) -> bool:
    return now.keys() == then.keys() and all(now[name] is then[name] for name in then)


def _device_states() -> dict[str, list[torch.Tensor]]:
    """Random state of every accelerator that this process has already initialised."""
    states = {}
    for name in ("cuda", "xpu"):
        module = getattr(torch, name, None)
        if module is not None and module.is_available() and module.is_initialized():
            states[name] = module.get_rng_state_all()
    return states
