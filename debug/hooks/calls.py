"""Tells who listens when a model is called: by hooks, or from outside of the graph of one that is compiled in place.

Hooks of a module that is compiled in place are compiled with it.  There they must do nothing, and they must neither come
nor go, for either would compile it anew.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn


class Listener(Protocol):
    """Is told of calls; both methods must not raise."""

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """The module is called."""

    def returned(self, module: nn.Module, output: Any) -> None:
        """The call gave its output; it is not told of calls that raised."""


class _Calls:
    """Those of one module.  Of a copied or unpickled module it tells nobody."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self._handles: list[Any] = []
        self._original: Any = None
        self._ours: Any = None
        self._outside = False

    def __reduce__(self) -> Any:
        return _Calls, ()

    def fit(self, module: nn.Module) -> None:
        """Be there, also where the module was compiled in place since."""
        compiled = module.__dict__.get("_compiled_call_impl")
        if compiled is not None and compiled is not self._ours:
            self._original, self._ours = compiled, self._around(module, compiled)
            module._compiled_call_impl = self._ours
        elif compiled is None and not self._handles:
            with contextlib.suppress(RuntimeError):  # a ScriptModule takes no hooks; it is not seen then
                before = module.register_forward_pre_hook(self.before, prepend=True, with_kwargs=True)
                self._handles = [before, module.register_forward_hook(self.after)]

    def remove(self, module: nn.Module) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._ours is not None and module.__dict__.get("_compiled_call_impl") is self._ours:
            module._compiled_call_impl = self._original

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook; in a graph that is being compiled there is nothing of it."""
        if torch.compiler.is_compiling():
            return
        if not self._outside:
            for listener in self.listeners:
                listener.called(module, args, kwargs)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook."""
        if torch.compiler.is_compiling():
            return
        if not self._outside:
            for listener in self.listeners:
                listener.returned(module, output)

    def _around(self, module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return call(*args, **kwargs)
            self.before(module, args, kwargs)
            self._outside = True  # what runs eagerly in there has hooks
            try:
                output = call(*args, **kwargs)
            finally:
                self._outside = False
            self.after(module, args, output)
            return output

        return told


_modules: weakref.WeakKeyDictionary[nn.Module, _Calls] = weakref.WeakKeyDictionary()


def listen(module: nn.Module, listener: Listener) -> None:
    """Tell a listener of all calls of a module from now on."""
    calls = _modules.setdefault(module, _Calls())
    calls.listeners.append(listener)
    calls.fit(module)


def fit(module: nn.Module) -> None:
    """A module that is listened to may have been compiled in place."""
    if (calls := _modules.get(module)) is not None:
        calls.fit(module)


def leave(module: nn.Module, listener: Listener) -> None:
    """Tell it no more; what nobody listens to is as it was."""
    calls = _modules.get(module)
    if calls is None or listener not in calls.listeners:
        return
    calls.listeners.remove(listener)
    if not calls.listeners:
        calls.remove(module)
        del _modules[module]
