"""Run a forward pass without side effects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loopwise import random_state
from loopwise.torch_internals import buffers

_depth = 0


def inside() -> bool:
    """Return whether the body of a ``preserve`` is running, so that a forward pass is not the user's."""
    return _depth > 0


@contextmanager
def preserve(*modules: nn.Module, training: bool | None = None) -> Iterator[None]:
    """Restore, on leaving, everything that a forward pass can change besides its result.

    The following is restored exactly, also if the body raises: the random state of Python, NumPy, the
    CPU and every initialised accelerator; the ``training`` flag of each submodule; and the value and
    identity of every buffer (BatchNorm's statistics and counters among them), without advancing the
    version counters that autograd compares.  Parameters are not copied: the body must not change them.

    Args:
        modules: the modules whose modes and buffers are restored.
        training: the mode of every submodule inside the body; ``None`` leaves the modes as they are.
    """
    global _depth
    state = random_state.get()
    submodules = [submodule for module in modules for submodule in module.modules()]
    modes = [submodule.training for submodule in submodules]
    saved = [(own, dict(own)) for submodule in submodules if (own := buffers(submodule))]
    copies = {id(b): (b, b.detach().clone()) for _, before in saved for b in before.values() if b is not None}
    _depth += 1
    try:
        if training is not None:
            for submodule in submodules:
                submodule.training = training
        yield
    finally:
        _depth -= 1
        for submodule, mode in zip(submodules, modes, strict=True):
            submodule.training = mode
        for own, before in saved:
            if own.keys() != before.keys() or any(own[name] is not before[name] for name in before):
                own.clear()
                own.update(before)
        with torch.no_grad():
            for buffer, copy in copies.values():
                buffer.data.copy_(copy)  # .data: a graph that saved the buffer must not see a new version
        random_state.set(state)


@contextmanager
def restored(attribute: str, owners: Iterable[Any]) -> Iterator[None]:
    """Restore an attribute of each owner on leaving."""
    values = [(owner, getattr(owner, attribute)) for owner in owners]
    try:
        yield
    finally:
        for owner, value in values:
            setattr(owner, attribute, value)
