"""``optimize``: a model, a class of models or a function compiled in place, with the loopwise backend."""

from __future__ import annotations

import functools
from typing import Any, TypeVar, overload

import torch
from torch import nn

from loopwise.errors import InputError

from .graph.backend import Backend, Log
from .graph.passes import USUAL
from .plan import Plan

T = TypeVar("T")


@overload
def optimize(target: T, *, plan: Plan | None = None) -> T: ...
@overload
def optimize(target: None = None, *, plan: Plan | None = None) -> Any: ...
def optimize(target: Any = None, *, plan: Plan | None = None) -> Any:
    """Compile ``target`` for training; as a call or as a decorator.

    A module is compiled in place (``Module.compile``): it stays the same object, the keys of its
    ``state_dict`` have no prefix, pickles and deep copies are of the ordinary module.  A class has
    each of its instances compiled when it was made.  A function gives a compiled function.  Where a
    graph cannot be compiled it runs eagerly, and that is said once.

    Only ``TrainStep`` compares with the eager step and measures: it knows the loss.

    Args:
        target: module, class of modules, or function.
        plan: what is on; default: Inductor with all passes.

    Raises:
        InputError: something else than these, or a module that is compiled already.
    """
    if target is None:
        return functools.partial(optimize, plan=plan)
    plan = plan or Plan(graph="inductor", passes=USUAL)
    if isinstance(target, nn.Module):
        return _in_place(target, plan)
    if isinstance(target, type) and issubclass(target, nn.Module):
        return _class(target, plan)
    if callable(target) and not isinstance(target, type):
        return torch.compile(target, backend=Backend(plan, Log()))
    raise InputError(
        f"{target!r} to optimize",
        "an nn.Module, a class of nn.Modules, or a function",
        "the name of a model, or its class where it is none of torch's",
        "pass the model itself",
    )


def _in_place(model: nn.Module, plan: Plan) -> nn.Module:
    if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        raise InputError(
            "a model that is compiled already",
            "a model as it was built",
            "torch.compile, Module.compile or optimize was called before",
            "call one of them, once",
        )
    model.compile(backend=Backend(plan, Log()))
    return model


def _class(kind: type[nn.Module], plan: Plan) -> type[nn.Module]:
    build = kind.__init__

    @functools.wraps(build)
    def built(self: nn.Module, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        if type(self) is kind:  # a subclass is not complete yet
            _in_place(self, plan)

    kind.__init__ = built  # type: ignore[method-assign]
    return kind
