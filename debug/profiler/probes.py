"""Hooks on models and optimizers that say when a forward pass or an update begins and ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .phases import Phases


class Probe:
    """What the hooks are methods of; of a copied or unpickled model they do nothing."""

    def __init__(self, phases: Phases | None = None) -> None:
        self._phases = phases

    def __reduce__(self) -> Any:
        return Probe, ()

    def before(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook; in a graph that is being compiled there is nothing of it."""
        if torch.compiler.is_compiling():
            return
        if self._phases is not None:
            self._phases.forward_begins()

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook."""
        if torch.compiler.is_compiling():
            return
        if self._phases is not None:
            self._phases.forward_ends(torch.is_grad_enabled())

    def before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._phases is not None:
            self._phases.optimizer_begins()

    def after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._phases is not None:
            self._phases.optimizer_ends()

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """What a module that is compiled in place calls, with the hooks outside of its graph."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or self._phases is None:
                return call(*args, **kwargs)
            self._phases.forward_begins()
            try:
                return call(*args, **kwargs)
            finally:
                self._phases.forward_ends(torch.is_grad_enabled())

        return timed


class Probes:
    """All of them.

    Args:
        phases: gets to know.
        models: root modules, in their outermost wrappers.
        optimizers: each once.
    """

    def __init__(self, phases: Phases, models: Iterable[nn.Module], optimizers: Iterable[Optimizer]) -> None:
        self._probe = Probe(phases)
        self._models = list({id(model): model for model in models}.values())
        self._handles: dict[int, list[Any]] = {}
        self._calls: dict[int, tuple[Any, Any]] = {}
        self._updates = [
            handle
            for optimizer in {id(each): each for each in optimizers}.values()
            for handle in (
                optimizer.register_step_pre_hook(self._probe.before_update),
                optimizer.register_step_post_hook(self._probe.after_update),
            )
        ]
        self.fit()

    def fit(self) -> None:
        """A model may have been compiled in place since, or was not and is."""
        for model in self._models:
            call = model.__dict__.get("_compiled_call_impl")
            known = self._calls.get(id(model))
            if call is None:
                if id(model) not in self._handles:
                    self._hook(model)
            elif known is None or known[1] is not call:
                self._unhook(model)
                timed = self._probe.around(call)
                self._calls[id(model)] = call, timed
                model._compiled_call_impl = timed

    def _hook(self, model: nn.Module) -> None:
        handles = self._handles[id(model)] = []
        with contextlib.suppress(RuntimeError):  # a ScriptModule takes no hooks; it is not seen then
            handles.append(model.register_forward_pre_hook(self._probe.before, prepend=True))
            handles.append(model.register_forward_hook(self._probe.after))

    def _unhook(self, model: nn.Module) -> None:
        for handle in self._handles.pop(id(model), []):
            handle.remove()

    def remove(self) -> None:
        """Everything is as it was."""
        self._probe._phases = None
        for model in self._models:
            self._unhook(model)
            call, timed = self._calls.pop(id(model), (None, None))
            if timed is not None and model.__dict__.get("_compiled_call_impl") is timed:
                model._compiled_call_impl = call
        for handle in self._updates:
            handle.remove()
        self._updates.clear()
