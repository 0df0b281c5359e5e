"""Subscriptions to the calls of a model.

Eager models get hooks; the compiled call of a model that is compiled in place is wrapped.  Hooks of such a module are
compiled with it.  Inside the graph these hooks must do nothing.  Adding or removing one would compile the module again.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from loopwise.torch_internals import compiled_call, set_compiled_call

from ..torch_internals import set_grad_mode
from .guards import as_pickle, is_extra_pass


class CallSubscriber:
    """Base class of subscribers to calls; no method may raise."""

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """The module is about to run its forward pass, which is no extra pass (see ``guards``)."""

    def returned(self, module: nn.Module, output: Any) -> None:
        """The forward pass, perhaps an extra one, returned its output; not called if it raised an error."""


class _Calls:
    """Hooks and subscribers of one module.

    The hooks of a copied or unpickled module have no subscribers.  Hooks that other code moves to another module, as
    the conversion of a model for quantization does, do nothing there.
    """

    def __init__(self, module: nn.Module | None = None) -> None:
        self.set_subscribers(())
        self._module = id(module)
        self._handles: list[Any] = []
        self._compiled: Any = None
        self._wrapper: Any = None
        self._in_wrapper = False

    def __reduce__(self) -> Any:
        return as_pickle()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Calls:
        return _Calls()

    def set_subscribers(self, subscribers: tuple[CallSubscriber, ...]) -> None:
        """Replace the subscribers; they are called in this order, if their class has the method."""
        self.subscribers = subscribers
        base = CallSubscriber
        self._called = [s.called for s in subscribers if type(s).called is not base.called]
        self._returned = [s.returned for s in subscribers if type(s).returned is not base.returned]

    def refresh(self, module: nn.Module) -> None:
        """Register the hooks, or wrap the compiled call of a module that was compiled in place since."""
        compiled = compiled_call(module)
        if compiled is not None and compiled is not self._wrapper:
            self._compiled, self._wrapper = compiled, self._wrapped(module, compiled)
            set_compiled_call(module, self._wrapper)
        elif compiled is None and not self._handles:
            with contextlib.suppress(
                RuntimeError
            ):  # a ScriptModule takes no hooks, and its calls are not seen
                before = module.register_forward_pre_hook(self.before, prepend=True, with_kwargs=True)
                self._handles = [before, module.register_forward_hook(self.after)]

    def remove(self, module: nn.Module) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._wrapper is not None and compiled_call(module) is self._wrapper:
            set_compiled_call(module, self._compiled)

    def before(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if torch.compiler.is_compiling() or self._in_wrapper or id(module) != self._module:
            return
        if is_extra_pass():
            return
        enabled = torch.is_grad_enabled()
        try:
            for called in self._called:
                called(module, args, kwargs)
        except BaseException:  # an interrupt, which may have come between a context's end and its effect
            set_grad_mode(enabled)
            raise

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or self._in_wrapper or id(module) != self._module:
            return
        enabled = torch.is_grad_enabled()
        try:
            for returned in self._returned:
                returned(module, output)
        except BaseException:
            set_grad_mode(enabled)
            raise

    def _wrapped(self, module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
        def call_that_tells(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return call(*args, **kwargs)
            self.before(module, args, kwargs)
            self._in_wrapper = True  # hooks run inside the compiled call after a graph break
            try:
                output = call(*args, **kwargs)
            finally:
                self._in_wrapper = False
            self.after(module, args, output)
            return output

        return call_that_tells


_modules: weakref.WeakKeyDictionary[nn.Module, _Calls] = weakref.WeakKeyDictionary()


def _forget() -> None:
    """Call no subscribers in a fork of the process, which has none of their threads."""
    for calls in list(_modules.values()):
        calls.set_subscribers(())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def subscribe(module: nn.Module, subscriber: CallSubscriber) -> None:
    """Add a subscriber to the calls of a module; subscribers are called in the order of their subscription."""
    calls = _modules.setdefault(module, _Calls(module))
    calls.set_subscribers((*calls.subscribers, subscriber))
    calls.refresh(module)


def refresh(module: nn.Module) -> None:
    """Keep the subscriptions of a module that may have been compiled in place since."""
    if (calls := _modules.get(module)) is not None:
        calls.refresh(module)


def unsubscribe(module: nn.Module, subscriber: CallSubscriber) -> None:
    """Remove a subscriber; the hooks are removed with the last one.  Unknown subscribers are ignored."""
    calls = _modules.get(module)
    if calls is None:
        return
    calls.set_subscribers(tuple([other for other in calls.subscribers if other is not subscriber]))
    if not calls.subscribers:
        calls.remove(module)
        del _modules[module]
