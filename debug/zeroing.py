"""Whether gradients are set to zero between two updates."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


class Zeroing:
    """Follows the smallest parameter of an optimizer from one update to the next.

    Args:
        guard: what the hooks run in.
    """

    def __init__(self, guard: Callable[[], AbstractContextManager[Any]]) -> None:
        self._guard = guard
        self._followed: weakref.WeakKeyDictionary[Optimizer, _Followed] = weakref.WeakKeyDictionary()

    def begin(self, optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """An update was made; follow what comes until the next."""
        names = {id(parameter): name for name, parameter in named}
        groups = optimizer.param_groups
        fit = [p for g in groups for p in g["params"] if p.grad is not None and id(p) in names and p.numel()]
        if optimizer in self._followed:
            self._followed.pop(optimizer).end()
        if fit:
            smallest = min(fit, key=lambda p: p.numel())
            self._followed[optimizer] = _Followed(names[id(smallest)], smallest, self._guard)

    def ended(self, optimizer: Optimizer) -> str:
        """The next update comes: the parameter's name where a gradient was added to, and never to nothing."""
        followed = self._followed.pop(optimizer, None)
        if followed is None:
            return ""
        followed.end()
        return followed.name if followed.added and not followed.fresh else ""

    def close(self) -> None:
        for followed in self._followed.values():
            followed.end()
        self._followed.clear()


class _Followed:
    def __init__(
        self, name: str, parameter: nn.Parameter, guard: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.name, self.added, self.fresh, self._guard = name, False, False, guard
        self._came: torch.Tensor | None = None
        self._handles: list[Any] = [
            parameter.register_hook(self._comes),  # type: ignore[no-untyped-call]
            parameter.register_post_accumulate_grad_hook(self._is_there),  # type: ignore[no-untyped-call]
        ]

    def _comes(self, gradient: torch.Tensor) -> None:
        if self.fresh:
            return
        with self._guard():
            self._came = gradient.detach().clone()

    def _is_there(self, parameter: torch.Tensor) -> None:
        came, self._came = self._came, None
        if came is None or parameter.grad is None:
            return
        with self._guard():
            self.added = True
            if not came.count_nonzero() or not came.isfinite().all() or torch.equal(parameter.grad, came):
                self.fresh = True  # also where nothing can be told

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
