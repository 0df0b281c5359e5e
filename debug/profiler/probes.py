"""Probes that report begin and end of forward passes and updates to ``Phases``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..hooks import calls
from ..hooks import optimizers as updates
from .phases import Phases


class Probes(calls.CallSubscriber, updates.UpdateSubscriber):
    """Subscription to the calls of models and the updates of optimizers.

    Args:
        phases: receiver of the times.
        models: root modules, in their outermost wrappers; a repeated one is subscribed to once.
        optimizers: optimizers; a repeated one is subscribed to once.
    """

    def __init__(self, phases: Phases, models: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> None:
        self._phases = phases
        self._models = list({id(model): model for model in models}.values())
        for model in self._models:
            calls.subscribe(model, self)
        for optimizer in {id(optimizer): optimizer for optimizer in optimizers}.values():
            updates.subscribe(optimizer, self)

    def refresh(self) -> None:
        """Adapt to models that were compiled in place since the last step."""
        for model in self._models:
            calls.refresh(model)

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Begin a forward pass."""
        self._phases.forward_begins()

    def returned(self, module: nn.Module, output: Any) -> None:
        """End a forward pass."""
        self._phases.forward_ends(torch.is_grad_enabled())

    def step_called(self, optimizer: Optimizer) -> None:
        """Begin an update; the calls of its closure, if it has one, are part of it."""
        self._phases.optimizer_begins()

    def after_update(self, optimizer: Optimizer) -> None:
        """End an update."""
        self._phases.optimizer_ends()

    def remove(self) -> None:
        """End all subscriptions."""
        for model in self._models:
            calls.unsubscribe(model, self)
        updates.unsubscribe_all(self)
