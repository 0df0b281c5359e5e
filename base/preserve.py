"""As if we had not been there: run a forward pass and leave no trace of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from loopwise import random_state

_depth = 0


def inside() -> bool:
    """Whether a body of ``preserve`` is running: its forward passes are none of the user's."""
    return _depth > 0


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
    global _depth
    state = random_state.get()
    parts = [part for module in modules for part in module.modules()]
    modes = [part.training for part in parts]
    buffers = [(part, dict(part._buffers)) for part in parts if part._buffers]
    copies = {id(b): (b, b.detach().clone()) for _, kept in buffers for b in kept.values() if b is not None}
    _depth += 1
    try:
        if training is not None:
            for part in parts:
                part.training = training
        yield
    finally:
        _depth -= 1
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
        for part, kept in buffers:
            if not _same(part._buffers, kept):
                part._buffers.clear()
                part._buffers.update(kept)
        with torch.no_grad():
            for buffer, copy in copies.values():
                buffer.data.copy_(copy)  # .data: no version bump for a graph that saved it
        random_state.set(state)


def _same(now: dict[str, torch.Tensor | None], then: dict[str, torch.Tensor | None]) -> bool:
    return now.keys() == then.keys() and all(now[name] is then[name] for name in then)
