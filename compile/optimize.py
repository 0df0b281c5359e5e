"""Compilation of a model, a class of models or a function in place, with the loopwise backend."""

from __future__ import annotations

import functools
from typing import Any, TypeVar, overload

import torch
from torch import nn

from loopwise.errors import InputError
from loopwise.torch_internals import compiled_call, original

from .graph.backend import Backend, Log
from .graph.passes import USUAL
from .options import validate_plan
from .plan import Plan

T = TypeVar("T")


@overload
def optimize(target: T, *, plan: Plan | None = None) -> T: ...
@overload
def optimize(target: None = None, *, plan: Plan | None = None) -> Any: ...
def optimize(target: Any = None, *, plan: Plan | None = None) -> Any:
    """Compile ``target`` for training; usable as a function or as a decorator.

    A module is compiled in place (``Module.compile``): it stays the same object, the keys of its
    ``state_dict`` have no prefix, and pickles and deep copies are ordinary modules.  A class compiles
    each of its instances when the instance was made.  A function gives a compiled function.  A graph that
    cannot be compiled runs eagerly, with one warning.

    Only ``TrainStep`` compares with the eager step and measures: it knows the loss.

    Args:
        target: module, class of modules, or function.
        plan: the plan; default: Inductor with all passes.

    Returns:
        The module or the class itself, or a compiled function; without ``target``, a decorator.

    Raises:
        InputError: ``target`` is of another type, or a module that is compiled already; ``plan`` is no plan.
    """
    validate_plan(plan)
    if target is None:
        return functools.partial(optimize, plan=plan)
    plan = plan or Plan(graph="inductor", passes=USUAL)
    if isinstance(target, nn.Module):
        return _compile_in_place(target, plan)
    if isinstance(target, type) and issubclass(target, nn.Module):
        return _compile_instances(target, plan)
    if callable(target) and not isinstance(target, type):
        return torch.compile(target, backend=Backend(plan, Log()))
    raise InputError(
        f"{target!r} to optimize",
        "an nn.Module, a class of nn.Modules, or a function",
        "a model's name, or a class that is no nn.Module, was passed",
        "pass the model itself",
    )


def _compile_in_place(model: nn.Module, plan: Plan) -> nn.Module:
    if original(model) is not model or compiled_call(model) is not None:
        raise InputError(
            "a model that is compiled already",
            "a model as it was built",
            "torch.compile, Module.compile or optimize was called before",
            "call one of them, once",
        )
    model.compile(backend=Backend(plan, Log()))
    return model


def _compile_instances(kind: type[nn.Module], plan: Plan) -> type[nn.Module]:
    """Let a class compile each of its instances at the end of ``__init__``."""
    build = kind.__init__

    @functools.wraps(build)
    def built(self: nn.Module, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        if type(self) is kind:  # an instance of a subclass is not complete yet
            _compile_in_place(self, plan)

    kind.__init__ = built  # type: ignore[method-assign]
    return kind
