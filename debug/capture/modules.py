"""Forward hooks that pass on inputs and outputs of modules, in eager code and in compiled graphs."""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..hooks.forward import on_call, on_return
from ..hooks.guards import as_pickle, is_extra_pass
from ..hooks.operators import operator
from ..model.tensors import tensors
from ..torch_internals import LOSSES, has_compiled, set_grad_mode
from .collection import Collection

Receive = Callable[["Observer", str, str, torch.Tensor], None]
"""Function that takes an observer, ``input`` or ``output``, a tensor's name and the tensor."""

FIRST = 2
"""Training steps in which all hooks are on their modules, whether the steps are saved or not."""
_numbers = itertools.count()
_live: weakref.WeakValueDictionary[int, Observer] = weakref.WeakValueDictionary()


class Observers:
    """Hooks of all modules of one ``Watch``.

    A hook makes each call of an eager module slower, also one that does nothing.  Hooks that no graph needs are therefore
    on their modules in saved steps only.  Once Dynamo has compiled something in this process, they stay: a graph depends
    on the hooks of its modules, and would be compiled again whenever they come or go.  They are there in the first steps,
    too, in which a compiled model is compiled.

    Args:
        receive: called with each tensor while ``open``.

    Attributes:
        open: whether the present step is saved.
        steps: training steps that have ended.
    """

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.open, self.steps = False, 0
        self._observers: dict[int, Observer] = {}
        self._are_off = False
        self._token: torch.Tensor | None = None

    def __bool__(self) -> bool:
        return bool(self._observers)

    def __iter__(self) -> Iterator[Observer]:
        return iter(self._observers.values())

    def refresh(self, modules: Iterable[tuple[str, nn.Module]], collections: list[Collection]) -> None:
        """Keep hooks on exactly the modules whose tensors a collection may select."""
        observers = {}
        for prefix, module in modules:
            if not _is_called(module):
                continue
            old = self._observers.pop(id(module), None)
            if old is not None and old.prefix == prefix:
                observers[id(module)] = old
                continue
            if old is not None:
                old.remove()
            observer = Observer(self, prefix, module, collections)
            if observer.kinds:
                observers[id(module)] = observer
                observer.attach(module, self._token_for(module))
        self.remove()
        self._observers = observers

    def begin(self, saved: bool) -> None:
        """Begin a step, in which tensors are passed on if it is saved."""
        self.open = saved
        off = not saved and self.steps >= FIRST and not has_compiled()
        if off is self._are_off:
            return
        self._are_off = off
        for observer in self:
            if off:
                observer.rest()
            else:
                observer.put_on()

    def remove(self) -> None:
        for observer in self._observers.values():
            observer.remove()
        self._observers.clear()

    def _token_for(self, module: nn.Module) -> torch.Tensor:
        """Return the tensor that the operator in a graph claims to change, so that it is not optimized away."""
        if self._token is None:
            device = next((p.device for p in module.parameters()), torch.device("cpu"))
            self._token = torch.zeros(1, device=device)
        return self._token


class Observer:
    """Hooks of one module.

    Attributes:
        prefix: the module's name and a dot.
        output: kind of the module's outputs, ``loss`` or ``output``.
        kinds: the kinds (``input``, ``output``, ``loss``) that a collection may want.
        owners: collections that name the module itself.
        fired: whether a tensor came.
    """

    def __init__(
        self, observers: Observers, prefix: str, module: nn.Module, collections: list[Collection]
    ) -> None:
        self.prefix, self._observers, self._module = prefix, weakref.proxy(observers), id(module)
        self.number, self.fired = next(_numbers), False
        self.owners = [c for c in collections if any(module is wanted for wanted in c.modules)]
        self.output = "loss" if isinstance(module, LOSSES) else "output"
        owned = {self.output} if self.owners else set()
        kinds = ("input", self.output)
        self.kinds = owned | {k for k in kinds if any(_may_want(c, k, prefix) for c in collections)}
        # in a compiled graph, tensors for health alone are not inspected: this would prevent fusion at every step
        asked = [c for c in collections if c.name != "health"]
        self._traced = owned | {k for k in self.kinds if any(_may_want(c, k, prefix) for c in asked)}
        self._handles: list[Any] = []

    def __reduce__(self) -> Any:
        return as_pickle()  # the hooks of a copied or unpickled module do nothing

    def __deepcopy__(self, memo: dict[int, Any]) -> Observer:
        return _inactive()

    def attach(self, module: nn.Module, token: torch.Tensor) -> None:
        self._token, self._attached = token, weakref.ref(module)
        _live[self.number] = self
        self.put_on()

    def put_on(self) -> None:
        """Register the hooks, unless they are registered or the module is gone."""
        module = self._attached()
        if module is None or self._handles or self.number not in _live:
            return
        if "input" in self.kinds:
            self._handles.append(on_call(module, self.before))
        if self.output in self.kinds:
            self._handles.append(on_return(module, self.after))

    def rest(self) -> None:
        """Remove the hooks for some steps, unless a compiled graph passes on tensors of the module."""
        if not self._traced:
            self._take_off()

    def remove(self) -> None:
        """Remove the hooks for good."""
        self._take_off()
        _live.pop(self.number, None)

    def _take_off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def before(self, module: nn.Module, args: Any, kwargs: Any = None) -> None:
        if torch.compiler.is_compiling():
            if "input" in self._traced:
                self._trace("input", args)
                self._trace("input", kwargs)
        elif self._observers.open and id(module) == self._module:
            self._take("input", args)
            self._take("input", kwargs)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            if self.output in self._traced:
                self._trace("output", output)
        elif self._observers.open and id(module) == self._module:
            self._take("output", output)

    def _trace(self, side: str, value: Any) -> None:
        for name, tensor in tensors(f"{self.prefix}{side}", value):
            observe(tensor.detach(), self._token, self.number, side, name)

    def _take(self, side: str, value: Any) -> None:
        if is_extra_pass():
            return
        enabled = torch.is_grad_enabled()
        try:
            for name, tensor in tensors(f"{self.prefix}{side}", value):
                self.take(side, name, tensor)
        except BaseException:  # an interrupt, which may have come between a context's end and its effect
            set_grad_mode(enabled)
            raise

    def take(self, side: str, name: str, tensor: torch.Tensor) -> None:
        """Pass on an input or output."""
        self.fired = True
        self._observers.receive(self, side, name, tensor)

    def is_wanted(self, collection: Collection, side: str) -> bool:
        """Return whether the collection surely wants the module's ``input`` or ``output``."""
        kind = self.output if side == "output" else side
        by_module = side == "output" and collection in self.owners
        return by_module or collection.wants(kind, f"{self.prefix}{side}.0")

    @property
    def is_open(self) -> bool:
        """True if the present step is saved."""
        return bool(self._observers.open)


def _forget() -> None:
    """Save nothing in a fork of the process, which has no thread that writes."""
    for observer in list(_live.values()):
        observer._observers.open = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _inactive() -> Observer:
    """Return an observer without a receiver."""
    observer = Observer.__new__(Observer)
    observer._observers, observer._traced, observer.output = Observers(lambda *_: None), set(), "output"
    observer._module = 0
    return observer


def _is_called(module: nn.Module) -> bool:
    """Return false for containers, and for the layer whose weights ``MultiheadAttention`` uses without a call."""
    has_forward = type(module).forward is not nn.Module.forward
    return has_forward and not isinstance(module, NonDynamicallyQuantizableLinear)


def _observe(value: torch.Tensor, token: torch.Tensor, observer: int, side: str, name: str) -> None:
    """Pass on a tensor from a compiled graph; ``token`` is not changed."""
    live = _live.get(observer)
    if live is not None and live.is_open and not is_extra_pass():
        live.take(side, name, value)


observe = operator("observe(Tensor value, Tensor(a!) token, int observer, str side, str name)", _observe)


def _may_want(collection: Collection, kind: str, prefix: str) -> bool:
    """Return whether tensors of this kind may belong to the collection; their names are not known in advance."""
    side = "input" if kind == "input" else "output"
    if collection.wants(kind, f"{prefix}{side}.0"):
        return True
    return any(side in pattern.pattern for pattern in collection.patterns)
