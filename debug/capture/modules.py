"""Forward hooks that hand on what modules take and give, in eager code and in compiled graphs."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.loss import _Loss

from ..hooks.forward import on_call, on_return
from ..hooks.guards import is_extra_pass
from ..model.tensors import tensors
from .collection import Collection

Receive = Callable[["Tap", str, str, torch.Tensor], None]
"""From a tap, ``input`` or ``output``, a tensor's name and the tensor, to where it is saved."""

_numbers = itertools.count()
_live: weakref.WeakValueDictionary[int, Tap] = weakref.WeakValueDictionary()


class Taps:
    """All taps of one ``Watch``.

    Args:
        receive: called with each tensor while ``open``.
    """

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.open = False
        self._taps: dict[int, Tap] = {}
        self._token: torch.Tensor | None = None

    def __bool__(self) -> bool:
        return bool(self._taps)

    def __iter__(self) -> Iterator[Tap]:
        return iter(self._taps.values())

    def fit(self, modules: Iterable[tuple[str, nn.Module]], collections: list[Collection]) -> None:
        """Have a tap at each module that a collection may want something of, and at no other."""
        found = {}
        for prefix, module in modules:
            if not _is_called(module):
                continue
            kept = self._taps.pop(id(module), None)
            if kept is not None and kept.prefix == prefix:
                found[id(module)] = kept
                continue
            if kept is not None:
                kept.remove()
            tap = Tap(self, prefix, module, collections)
            if tap.kinds:
                found[id(module)] = tap.attach(module, self._token_at(module))
        self.remove()
        self._taps = found

    def remove(self) -> None:
        for tap in self._taps.values():
            tap.remove()
        self._taps.clear()

    def _token_at(self, module: nn.Module) -> torch.Tensor:
        """What the operator in a graph pretends to change, so that it is not left out."""
        if self._token is None:
            device = next((p.device for p in module.parameters()), torch.device("cpu"))
            self._token = torch.zeros(1, device=device)
        return self._token


class Tap:
    """The hooks of one module.

    Attributes:
        prefix: the module's name with a dot behind it.
        kinds: of ``input``, ``output`` and ``loss`` those that a collection may want.
        owners: collections that want the module itself.  In a compiled graph what ``health`` alone
            wants is left alone, for looking at it costs fusion at every step.
        fired: whether anything came.
    """

    def __init__(self, taps: Taps, prefix: str, module: nn.Module, collections: list[Collection]) -> None:
        self.prefix, self._taps = prefix, weakref.proxy(taps)
        self.number, self.fired = next(_numbers), False
        self.owners = [c for c in collections if any(module is wanted for wanted in c.modules)]
        output = "loss" if isinstance(module, _Loss) else "output"
        self.output = output
        self.kinds = {
            kind for kind in ("input", output) if any(_may_want(c, kind, prefix) for c in collections)
        }
        if self.owners:
            self.kinds.add(output)
        asked = [c for c in collections if c.name != "health"]
        self._traced = {kind for kind in self.kinds if any(_may_want(c, kind, prefix) for c in asked)}
        self._traced |= {output} if self.owners else set()
        self._handles: list[Any] = []

    def __reduce__(self) -> Any:
        return _deaf, ()  # of a copied or unpickled module

    def attach(self, module: nn.Module, token: torch.Tensor) -> Tap:
        self._token = token
        if "input" in self.kinds:
            self._handles.append(on_call(module, self.before))
        if self.output in self.kinds:
            self._handles.append(on_return(module, self.after))
        _live[self.number] = self
        return self

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        _live.pop(self.number, None)

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Forward pre-hook."""
        if torch.compiler.is_compiling():
            if "input" in self._traced:
                self._trace("input", args)
                self._trace("input", kwargs)
        elif self._taps.open:
            self._take("input", args)
            self._take("input", kwargs)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook."""
        if torch.compiler.is_compiling():
            if self.output in self._traced:
                self._trace("output", output)
        elif self._taps.open:
            self._take("output", output)

    def _trace(self, which: str, value: Any) -> None:
        for name, tensor in tensors(f"{self.prefix}{which}", value):
            observe(tensor.detach(), self._token, self.number, which, name)

    def _take(self, which: str, value: Any) -> None:
        if is_extra_pass():
            return
        for name, tensor in tensors(f"{self.prefix}{which}", value):
            self.take(which, name, tensor)

    def take(self, which: str, name: str, tensor: torch.Tensor) -> None:
        self.fired = True
        self._taps.receive(self, which, name, tensor)

    def is_wanted(self, collection: Collection, which: str) -> bool:
        """Whether the collection surely wants the module's ``input`` or ``output``."""
        kind = self.output if which == "output" else which
        by_module = which == "output" and collection in self.owners
        return by_module or collection.wants(kind, f"{self.prefix}{which}.0")

    @property
    def is_open(self) -> bool:
        return bool(self._taps.open)


def _deaf() -> Tap:
    """The tap of a copy of a module: nobody listens."""
    tap = Tap.__new__(Tap)
    tap._taps, tap._traced, tap.output = Taps(lambda *_: None), set(), "output"
    return tap


def _is_called(module: nn.Module) -> bool:
    """Not containers, nor the layer whose weights ``MultiheadAttention`` uses without calling it."""
    return type(module).forward is not nn.Module.forward and not isinstance(
        module, NonDynamicallyQuantizableLinear
    )


def _observe(value: torch.Tensor, token: torch.Tensor, tap: int, which: str, name: str) -> None:
    """A tap in a compiled graph.  It changes nothing; ``token`` keeps it from being left out."""
    found = _live.get(tap)
    if found is not None and found.is_open and not is_extra_pass():
        found.take(which, name, value)


def _silent(value: torch.Tensor, token: torch.Tensor, tap: int, which: str, name: str) -> None:
    pass


# `custom_op` would say it in a line, but a call takes 30 microseconds then, and 8 so
_library: Any = torch.library.Library("loopwise", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("observe(Tensor value, Tensor(a!) token, int tap, str which, str name) -> ()")
_library.impl("observe", _observe, "CompositeExplicitAutograd")
torch.library.register_fake("loopwise::observe", _silent, lib=_library)
observe = torch.ops.loopwise.observe.default


def _may_want(collection: Collection, kind: str, prefix: str) -> bool:
    """Whether a tensor of this kind, its name known only when it comes, may belong to the collection."""
    which = "input" if kind == "input" else "output"
    if collection.wants(kind, f"{prefix}{which}.0"):
        return True
    return any(which in pattern.pattern for pattern in collection.patterns)
