"""Conditions under which a hook has to ignore a forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch

from loopwise import preserve

from ..torch_internals import in_backward, in_transform, set_grad_mode


class Guarded:
    """Context in which autograd is off, and from which errors go to a function in place of the caller.

    It is no generator: if an interrupt skips the end of a generator's context, the end takes effect when the generator
    is freed, and would then set autograd to an old mode.

    Args:
        failed: function that is called with an error.
        interrupted: function that is called if an interrupt ends the block; the interrupt goes on.
        contexts: further contexts of the block.
    """

    def __init__(
        self,
        failed: Callable[[Exception], None],
        interrupted: Callable[[], None] = lambda: None,
        *contexts: AbstractContextManager[Any],
    ) -> None:
        self._failed, self._interrupted, self._contexts = failed, interrupted, contexts

    def __enter__(self) -> None:
        self._enabled = torch.is_grad_enabled()
        for context in self._contexts:
            context.__enter__()
        set_grad_mode(False)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        set_grad_mode(self._enabled)
        for context in reversed(self._contexts):
            context.__exit__(None, None, None)
        if isinstance(error, Exception):
            self._failed(error)
            return True
        if error is not None:
            self._interrupted()
        return False


def as_pickle() -> Any:
    """Return what ``__reduce__`` of an object with the hooks ``before`` and ``after`` has to return.

    The unpickled hooks do nothing, and consist of objects of the standard library alone, so that a watched model can be
    saved and loaded where Loopwise is not installed.
    """
    nothing = contextlib.nullcontext().__exit__  # takes any arguments and returns None
    return SimpleNamespace, (), {"before": nothing, "after": nothing}


def is_capturing() -> bool:
    """Return whether a CUDA graph is being captured; code must not wait for the device then."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def is_extra_pass() -> bool:
    """Return whether the forward pass is not the training loop's own.

    Measurements inside ``preserve``, recomputations by activation checkpointing, and passes under a transform of
    torch.func or a trace are such passes.
    """
    return preserve.inside() or in_backward() or in_transform()


def is_observable() -> bool:
    """Return whether the forward pass is the training loop's own and no CUDA graph is being captured."""
    return not is_extra_pass() and not is_capturing()
