"""Conditions under which a hook has to ignore a forward pass."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch

from loopwise import preserve

from ..torch_internals import in_backward_or_transform, set_grad_mode


class Stopwatch:
    """Seconds in blocks; nested blocks count once.

    Attributes:
        done: seconds of the blocks that ended.
        depth: number of blocks that are open.
        since: time at which the outermost open block began.
    """

    def __init__(self) -> None:
        self.done, self.depth, self.since = 0.0, 0, 0.0

    def spent(self) -> float:
        """Return the seconds so far."""
        return self.done + (time.perf_counter() - self.since) if self.depth else self.done


class Quiet:
    """Context in which autograd is off.

    It is no generator: if an interrupt skips the end of a generator's context, the end takes effect when the generator
    is freed, and would then set autograd to an old mode.  One object serves any number of blocks of one thread, also
    nested ones, if its further contexts do.

    Args:
        stopwatch: stopwatch that counts the time inside.
        contexts: further contexts of the block.
    """

    def __init__(
        self, stopwatch: Stopwatch | None = None, contexts: Sequence[AbstractContextManager[Any]] = ()
    ) -> None:
        self._stopwatch, self._contexts = stopwatch, contexts
        self._modes: list[bool] = []

    def __enter__(self) -> None:
        self._modes.append(torch.is_grad_enabled())
        stopwatch = self._stopwatch
        if stopwatch is not None:
            if not stopwatch.depth:
                stopwatch.since = time.perf_counter()
            stopwatch.depth += 1
        for context in self._contexts:
            context.__enter__()
        set_grad_mode(False)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        set_grad_mode(self._modes.pop())
        for context in reversed(self._contexts):
            context.__exit__(None, None, None)
        stopwatch = self._stopwatch
        if stopwatch is not None:
            if stopwatch.depth > 1:
                stopwatch.depth -= 1
            else:  # 0: an interrupt set it to 0 meanwhile
                stopwatch.done += time.perf_counter() - stopwatch.since
                stopwatch.depth = 0
        return error is not None and self._takes(error)

    def _takes(self, error: BaseException) -> bool:
        """Return whether the error ends here."""
        return False


class Guarded(Quiet):
    """Context in which autograd is off, and from which errors go to a function in place of the caller.

    Args:
        failed: function that is called with an error.
        interrupted: function that is called if an interrupt ends the block; the interrupt goes on.
        stopwatch, contexts: see ``Quiet``.
    """

    def __init__(
        self,
        failed: Callable[[Exception], None],
        interrupted: Callable[[], None] = lambda: None,
        stopwatch: Stopwatch | None = None,
        contexts: Sequence[AbstractContextManager[Any]] = (),
    ) -> None:
        super().__init__(stopwatch, contexts)
        self._failed, self._interrupted = failed, interrupted

    def _takes(self, error: BaseException) -> bool:
        if isinstance(error, Exception):
            self._failed(error)
            return True
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
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()


def is_extra_pass() -> bool:
    """Return whether the forward pass is not the training loop's own.

    Measurements inside ``preserve``, recomputations by activation checkpointing, and passes under a transform of
    torch.func or a trace are such passes.
    """
    return preserve.inside() or in_backward_or_transform()


def is_observable() -> bool:
    """Return whether the forward pass is the training loop's own and no CUDA graph is being captured."""
    return not is_extra_pass() and not is_capturing()
