"""Detection of gradients that are not set to zero between two updates, and the count of backward passes."""

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
"""Number of inspected backward passes after an update: each inspection waits for the device."""


class Zeroing:
    """Observation of the smallest parameter of each optimizer, from one update to the next.

    Args:
        guard: context that the hooks run in.
    """

    def __init__(self, guard: Callable[[], AbstractContextManager[Any]]) -> None:
        self._guard = guard
        self._followed: weakref.WeakKeyDictionary[Optimizer, _Followed] = weakref.WeakKeyDictionary()

    def begin(self, optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Follow the smallest parameter until the next update.

        Args:
            optimizer: the optimizer, after an update.
            named: names and parameters that the update changed.
        """
        names = {id(parameter): name for name, parameter in named}
        groups = optimizer.param_groups
        candidates = [p for g in groups for p in g["params"] if id(p) in names and _can_be_followed(p)]
        if optimizer in self._followed:
            self._followed.pop(optimizer).end()
        if candidates:
            smallest = min(candidates, key=lambda p: p.numel())
            self._followed[optimizer] = _Followed(names[id(smallest)], smallest, self._guard)

    def end(self, optimizer: Optimizer) -> str:
        """End the observation at the next update.

        Returns:
            Name of the parameter if all its gradients were added to earlier ones, otherwise an empty text.
        """
        followed = self._followed.pop(optimizer, None)
        if followed is None:
            return ""
        followed.end()
        return followed.name if followed.is_added_to else ""

    def passes(self, optimizer: Optimizer) -> int:
        """Return the number of backward passes before the first update that was followed; 0 if there was none."""
        followed = self._followed.get(optimizer)
        return 0 if followed is None else followed.passes

    def step_called(self, optimizer: Optimizer) -> None:
        """Count an update, whether its step is saved or not."""
        if self._followed and (followed := self._followed.get(optimizer)) is not None:
            if not followed.updated:
                followed.updated = True
            elif followed.fresh or followed.is_enough:
                followed.end()  # nothing that comes changes the answer

    def close(self) -> None:
        for followed in self._followed.values():
            followed.end()
        self._followed.clear()


def _can_be_followed(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    is_dense = gradient is None or gradient.layout is torch.strided
    return is_dense and parameter.requires_grad and parameter.is_leaf and parameter.numel() > 0


class _Followed:
    """Hooks on one parameter.

    Attributes:
        fresh: true if a gradient was the first one since zero_grad, or this cannot be known.
        passes: backward passes before the first update.
        updated: whether that update came.
    """

    def __init__(
        self, name: str, parameter: nn.Parameter, guard: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.name, self.fresh, self._guard = name, False, guard
        self.passes, self.updated = 0, False
        self._parameter, self._compared = parameter, 0
        self._gradient: torch.Tensor | None = None
        self._handles = [on_gradient(parameter, self._before), on_accumulated(parameter, self._after)]

    def _before(self, gradient: torch.Tensor) -> None:
        """Copy a gradient before it is added to ``parameter.grad``."""
        if not self.updated:
            self.passes = 1 if self._parameter.grad is None else self.passes + 1
        if self.fresh or self._compared >= PASSES or is_capturing() or gradient.layout is not torch.strided:
            return
        with self._guard():
            self._gradient = gradient.detach().clone()

    def _after(self, parameter: torch.Tensor) -> None:
        """Compare ``parameter.grad`` with the gradient: they are equal if there was no earlier gradient."""
        gradient, self._gradient = self._gradient, None
        if gradient is None or parameter.grad is None:
            return
        with self._guard():
            self._compared += 1
            unknown = not gradient.count_nonzero() or not gradient.isfinite().all()
            if unknown or torch.equal(parameter.grad, gradient):
                self.fresh = True

    @property
    def is_enough(self) -> bool:
        """True if no more gradients are compared."""
        return self._compared >= PASSES

    @property
    def is_added_to(self) -> bool:
        """True if there were gradients, and each was added to an earlier one."""
        return self._compared > 0 and not self.fresh

    def end(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.remove()
