"""Whether gradients are set to zero between two updates, and how many backward passes there are."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..hooks.guards import is_capturing
from ..hooks.tensors import on_accumulated, on_gradient

PASSES = 16
"""Backward passes after an update that are looked at: each waits for the device."""


class Zeroing:
    """Follows the smallest parameter of an optimizer from one update to the next.

    Args:
        guard: what the hooks run in.
    """

    def __init__(self, guard: Callable[[], AbstractContextManager[Any]]) -> None:
        self._guard = guard
        self._followed: weakref.WeakKeyDictionary[Optimizer, _Followed] = weakref.WeakKeyDictionary()

    def begin(self, optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """An update was made of those parameters; follow what comes until the next."""
        names = {id(parameter): name for name, parameter in named}
        groups = optimizer.param_groups
        fit = [p for g in groups for p in g["params"] if id(p) in names and _can_be_followed(p)]
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
        return followed.name if followed.is_added_to else ""

    def passes(self, optimizer: Optimizer) -> int:
        """Backward passes that added up to the first update that was followed; 0 where none was."""
        followed = self._followed.get(optimizer)
        return 0 if followed is None else followed.passes

    def updating(self, optimizer: Optimizer) -> None:
        """An update comes, whether its step is saved or not."""
        if (followed := self._followed.get(optimizer)) is not None:
            followed.updated = True

    def close(self) -> None:
        for followed in self._followed.values():
            followed.end()
        self._followed.clear()


def _can_be_followed(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    plain = gradient is None or gradient.layout is torch.strided
    return plain and parameter.requires_grad and parameter.is_leaf and parameter.numel() > 0


class _Followed:
    def __init__(
        self, name: str, parameter: nn.Parameter, guard: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.name, self.fresh, self._guard = name, False, guard
        self.passes, self.updated = 0, False
        self._parameter, self._compared = parameter, 0
        self._came: torch.Tensor | None = None
        self._handles: list[Any] = [
            on_gradient(parameter, self._comes),
            on_accumulated(parameter, self._is_there),
        ]

    def _comes(self, gradient: torch.Tensor) -> None:
        if not self.updated:
            self.passes = 1 if self._parameter.grad is None else self.passes + 1
        if self.fresh or self._compared >= PASSES or is_capturing() or gradient.layout is not torch.strided:
            return
        with self._guard():
            self._came = gradient.detach().clone()

    def _is_there(self, parameter: torch.Tensor) -> None:
        came, self._came = self._came, None
        if came is None or parameter.grad is None:
            return
        with self._guard():
            self._compared += 1
            if not came.count_nonzero() or not came.isfinite().all() or torch.equal(parameter.grad, came):
                self.fresh = True  # also where nothing can be told

    @property
    def is_added_to(self) -> bool:
        """Whether gradients came, and none of them to nothing."""
        return self._compared > 0 and not self.fresh

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
