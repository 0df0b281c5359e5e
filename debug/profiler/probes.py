"""Says when a forward pass or an update begins and ends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..hooks import calls
from .phases import Phases


class Probes:
    """All of them.

    Args:
        phases: gets to know.
        models: root modules, in their outermost wrappers.
        optimizers: each once.
    """

    def __init__(self, phases: Phases, models: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> None:
        self._phases = phases
        self._models = list({id(model): model for model in models}.values())
        for model in self._models:
            calls.listen(model, self)
        self._updates = [
            handle
            for optimizer in {id(each): each for each in optimizers}.values()
            for handle in (
                optimizer.register_step_pre_hook(self._before_update),
                optimizer.register_step_post_hook(self._after_update),
            )
        ]

    def fit(self) -> None:
        """A model may have been compiled in place since."""
        for model in self._models:
            calls.fit(model)

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A forward pass begins."""
        self._phases.forward_begins()

    def returned(self, module: nn.Module, output: Any) -> None:
        """It ends."""
        self._phases.forward_ends(torch.is_grad_enabled())

    def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():  # a compiled step has the hooks in its graph; there they do nothing
            return
        self._phases.optimizer_begins()

    def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._phases.optimizer_ends()

    def remove(self) -> None:
        """Everything is as it was."""
        for model in self._models:
            calls.leave(model, self)
        for handle in self._updates:
            handle.remove()
        self._updates.clear()
