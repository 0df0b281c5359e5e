"""Conditions under which a hook has to ignore a forward pass."""

from __future__ import annotations

import torch

from loopwise import preserve

from ..torch_internals import in_backward


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured; code must not wait for the device then."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def is_extra_pass() -> bool:
    """Return whether the forward pass is not the training loop's own.

    Measurements inside ``preserve`` and recomputations by activation checkpointing are such passes.
    """
    return preserve.inside() or in_backward()


def is_observable() -> bool:
    """Return whether the forward pass is the training loop's own and no CUDA graph is being captured."""
    return not is_extra_pass() and not is_capturing()
