"""Hooks that run right before an optimizer updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer


class Updates:
    """Hooks on optimizers.

    Args:
        optimizers: each once.
        before: called with an optimizer right before it updates, where ``wanted()``.
    """

    def __init__(
        self,
        optimizers: Iterable[Optimizer],
        wanted: Callable[[], bool],
        before: Callable[[Optimizer], None],
    ) -> None:
        self._wanted, self._before = wanted, before
        self._handles = [o.register_step_pre_hook(self._hook) for o in optimizers]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        if not self._wanted():
            return None
        return before_update(args, kwargs, lambda: self._before(optimizer) if self._wanted() else None)


def before_update(args: Any, kwargs: Any, action: Callable[[], None]) -> Any:
    """Act right before an optimizer updates, once its closure has made gradients, where it has one.

    Args:
        args, kwargs: what a step pre-hook was called with.

    Returns:
        What the pre-hook is to return.
    """
    closure = args[1] if len(args) > 1 else kwargs.get("closure")  # args[0] is the optimizer
    if closure is None:
        action()
        return None

    def then() -> Any:
        loss = closure()
        action()
        return loss

    if len(args) > 1:
        return (args[0], then, *args[2:]), kwargs
    return args, {**kwargs, "closure": then}
