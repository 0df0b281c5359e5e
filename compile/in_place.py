"""Compilation of a model, a class of models or a function in place, with the loopwise backend.

Also the backend itself, which torch finds by its name ``loopwise``.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import fx, nn

from loopwise.errors import InputError
from loopwise.torch_internals import compiled_call, original, set_compiled_call, uncompiled_call

from .graph import backend as graphs
from .graph.passes import USUAL
from .losses import name_of
from .options import validate_plan
from .plan import Plan
from .torch_internals import CapturedAsEager, is_compiled_function, once_functions
from .verify.compared import ComparedCall, ComparedGraph

T = TypeVar("T")
DEFAULT = Plan(graph="inductor", passes=USUAL)
"""Plan of what is compiled in place, unless another one is given."""
_plans: weakref.WeakKeyDictionary[nn.Module, Plan] = weakref.WeakKeyDictionary()
"""Plans of single LightningModules."""


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

    A LightningModule, or a class of them, lets ``Trainer.fit`` compile its ``training_step``, as the callback
    ``CompilingCallback`` does; outside of a Trainer it is as before.

    The first call with gradients runs the target eagerly and compiled, with equal random draws and without side
    effects, and compares outputs and gradients.  A compiled form that differs is never used: the target
    runs eagerly, with one warning.  Later graphs are compared in the same way before they are used, with the captured
    operations as eager kernels run them.  Blocks of a sharded model are compiled and not compared.
    Only ``TrainStep`` measures.

    Args:
        target: module, class of modules, or function.
        plan: the plan; default: Inductor with all passes.

    Returns:
        The module or the class itself, or a compiled function; without ``target``, a decorator.

    Raises:
        InputError: ``target`` is of another type, or is compiled already; ``plan`` is no plan.
    """
    validate_plan(plan)
    if target is None:
        return functools.partial(optimize, plan=plan)
    plan = plan or DEFAULT
    if isinstance(target, nn.Module):
        return _compile_in_place(target, plan)
    if isinstance(target, type) and issubclass(target, nn.Module):
        return _compile_instances(target, plan)
    if callable(target) and not isinstance(target, type):
        return _compiled_function(target, plan)
    raise InputError(
        f"{target!r} to optimize",
        "an nn.Module, a class of nn.Modules, or a function",
        "a model's name, or a class that is no nn.Module, was passed",
        "pass the model itself",
    )


def loopwise(gm: fx.GraphModule, example_inputs: Sequence[Any], **settings: Any) -> graphs.Compiled:
    """Compile a captured graph for ``torch.compile(backend="loopwise")``.

    torch finds this function through an entry point; no import of Loopwise is needed.  The first time that the compiled
    graph runs, it is compared with the captured operations as eager kernels run them; a graph that differs runs
    by these, with one warning.  The capture itself is torch's and is not checked.

    Args:
        gm: the captured graph.
        example_inputs: its inputs.
        settings: ``options``, with some of the keys of ``OPTIONS`` in ``graph/backend.py``.

    Raises:
        InputError: a mode, an option that is not in ``OPTIONS``, or a value that does not exist.
    """
    return graphs.loopwise(gm, example_inputs, compared=ComparedGraph, **settings)


def _compared(
    name: str,
    function: Callable[..., Any],
    by: Callable[[graphs.Backend], Any],
    plan: Plan,
    model: Any = None,
) -> ComparedCall:
    """Return a compiled call that is compared with the eager ``function``; ``by`` compiles it by a backend."""
    captured: list[ComparedGraph] = []

    def compared(graph: fx.GraphModule, made: graphs.Compiled) -> ComparedGraph:
        captured.append(ComparedGraph(graph, made))
        return captured[-1]

    inner = by(graphs.Backend(plan, graphs.Log(), compared))
    once = once_functions()

    def compiled(*args: Any, **options: Any) -> Any:
        with CapturedAsEager(once):
            return inner(*args, **options)

    return ComparedCall(name, function, compiled, captured, model)


def _compile_in_place(model: nn.Module, plan: Plan) -> nn.Module:
    if original(model) is not model or compiled_call(model) is not None or model in _plans:
        raise _compiled_already("model")
    if _is_lightning(type(model)):
        _plans[model] = plan
        _let_trainers_compile(type(model), _plan_of)
        return model

    def by(backend: graphs.Backend) -> Any:
        model.compile(backend=backend)
        return compiled_call(model)

    call = _compared(type(model).__name__, uncompiled_call(model), by, plan, model)
    set_compiled_call(model, call)
    return model


def _compile_instances(kind: type[nn.Module], plan: Plan) -> type[nn.Module]:
    """Let a class compile each of its instances at the end of ``__init__``."""
    if _is_lightning(kind):
        _let_trainers_compile(kind, lambda module: plan)
        return kind
    build = kind.__init__

    @functools.wraps(build)
    def built(self: nn.Module, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        if type(self) is kind:  # an instance of a subclass is not complete yet
            _compile_in_place(self, plan)

    kind.__init__ = built  # type: ignore[method-assign]
    return kind


def _compiled_function(function: Callable[..., Any], plan: Plan) -> Callable[..., Any]:
    if is_compiled_function(function):
        raise _compiled_already("function")
    call = _compared(
        name_of(function), function, lambda backend: torch.compile(function, backend=backend), plan
    )

    @functools.wraps(function)
    def compiled(*args: Any, **options: Any) -> Any:
        return call(*args, **options)

    compiled.loopwise_plan = plan  # type: ignore[attr-defined]  # is_compiled_function looks for it
    return compiled


def _compiled_already(what: str) -> InputError:
    return InputError(
        f"a {what} that is compiled already",
        f"a {what} as it was built",
        "torch.compile, Module.compile or optimize was called before",
        "call one of them, once",
    )


def _plan_of(module: nn.Module) -> Plan | None:
    """Return the plan of a single LightningModule."""
    return _plans.get(module)


def _is_lightning(kind: type) -> bool:
    """Return whether a class is a LightningModule, without an import of Lightning."""
    names = ((base.__name__, base.__module__.partition(".")[0]) for base in kind.__mro__)
    return any(
        name == "LightningModule" and part in ("lightning", "pytorch_lightning") for name, part in names
    )


def _let_trainers_compile(kind: Any, plan_of: Callable[[nn.Module], Plan | None]) -> None:
    """Let a LightningModule's ``configure_callbacks`` add the callback that compiles ``training_step``."""
    configured = kind.configure_callbacks
    if getattr(configured, "plan_of", None) is plan_of:
        return

    @functools.wraps(configured)
    def configure_callbacks(self: Any) -> Any:
        from .lightning import CompilingCallback

        callbacks, plan = configured(self), plan_of(self)
        own = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
        if plan is None or any(isinstance(one, CompilingCallback) for one in [*own, *self.trainer.callbacks]):
            return callbacks
        return [*own, CompilingCallback(plan=plan)]

    configure_callbacks.plan_of = plan_of  # type: ignore[attr-defined]
    kind.configure_callbacks = configure_callbacks
