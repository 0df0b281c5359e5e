"""State that the user's training step holds beside its arguments: restored after the step was tried out."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise.errors import InputError

from ..torch_internals import mark_scheduled, scheduler_parts
from .copies import Setup

PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""Values that a function can only replace, such as a counter of steps."""
EMPTY = object()
DEPTH = 3
"""Containers and attributes that lead to an object whose state is restored."""
MANY = 1000
"""Items of a container above which they are taken for data."""


@contextlib.contextmanager
def restored(step: Callable[..., Any], setup: Setup, trained: Setup) -> Iterator[None]:
    """Let a function train a copy, and restore afterwards what it holds.

    Restored are numbers and texts among the variables of its closure, the globals that it names and the attributes of
    ``self``, such as a counter of steps; and every object there, in a ``functools.partial`` or up to three containers or
    attributes further, that has ``state_dict`` and ``load_state_dict``, such as a ``GradScaler``.  Schedulers step the
    optimizer of the copy meanwhile.

    Args:
        step: the function.
        setup: the original model and optimizer, which the caller guards.
        trained: the copy.

    Raises:
        InputError: the state of such an object cannot be copied.
    """
    undo: list[Callable[[], Any]] = [_rates_again(setup.optimizer)]
    seen = {id(setup.model), id(setup.optimizer)}
    try:
        for held in (each for value in _held(step, undo, set()) for each in _within(value, DEPTH)):
            if id(held) in seen or (isinstance(held, nn.Module) and setup.model in held.modules()):
                continue
            seen.add(id(held))
            save, load = (getattr(held, name, None) for name in ("state_dict", "load_state_dict"))
            if callable(save) and callable(load):
                undo.append(functools.partial(load, _copied(held, save)))
            if setup.optimizer is not None and getattr(held, "optimizer", None) is setup.optimizer:
                undo.append(functools.partial(setattr, held, "optimizer", setup.optimizer))
                held.optimizer = trained.optimizer
                mark_scheduled(trained.optimizer)
        yield
    finally:
        for each in reversed(undo):
            each()


def _rates_again(optimizer: Optimizer | None) -> Callable[[], None]:
    """Return a function that gives the groups of an optimizer their present learning rates and other settings again."""
    groups = optimizer.param_groups if optimizer is not None else []
    before = [{k: copy.deepcopy(v) for k, v in group.items() if k != "params"} for group in groups]

    def again() -> None:
        for group, settings in zip(groups, before, strict=True):
            for key, value in settings.items():
                if isinstance(value, torch.Tensor) and isinstance(group[key], torch.Tensor):
                    group[key].copy_(value)
                else:
                    group[key] = value

    return again


def _copied(held: Any, save: Callable[[], Any]) -> Any:
    try:
        return copy.deepcopy(save())
    except Exception as error:
        raise InputError(
            f"a step that holds a {type(held).__name__} whose state cannot be copied: {error!r}",
            "a step that holds nothing, or objects whose state can be copied and loaded again",
            "the object changes when the step is tried out, and could not be restored",
            "omit step=, or pass a function that does without this object",
        ) from error


def _held(function: Any, undo: list[Callable[[], Any]], seen: set[int]) -> Iterator[Any]:
    """Yield the objects that a function holds, and those of the functions of the same file that it calls."""
    if id(function) in seen:
        return
    seen.add(id(function))
    if isinstance(function, functools.partial):
        yield from (*function.args, *function.keywords.values())
        yield from _held(function.func, undo, seen)
        return
    if (wrapped := getattr(function, "__wrapped__", None)) is not None:
        yield from _held(wrapped, undo, seen)
    owner = getattr(function, "__self__", None if isinstance(function, types.FunctionType) else function)
    if owner is not None and not isinstance(owner, type | types.ModuleType):
        yield owner
        own = vars(owner) if hasattr(owner, "__dict__") else {}
        undo += [functools.partial(own.__setitem__, k, v) for k, v in own.items() if isinstance(v, PLAIN)]
        yield from own.values()
    code = getattr(function, "__func__", function)
    if not isinstance(code, types.FunctionType):
        code = inspect.getattr_static(type(function), "__call__", None)
    if not isinstance(code, types.FunctionType):
        return
    found = [*(code.__defaults__ or ()), *(code.__kwdefaults__ or {}).values()]
    for cell in code.__closure__ or ():
        value = _content(cell)
        if isinstance(value, PLAIN):
            undo.append(functools.partial(setattr, cell, "cell_contents", value))
        found.append(value)
    space = code.__globals__
    for name in code.__code__.co_names:
        if name in space:
            if isinstance(space[name], PLAIN):
                undo.append(functools.partial(space.__setitem__, name, space[name]))
            found.append(space[name])
    for value in found:
        yield value
        if isinstance(value, types.FunctionType) and value.__globals__ is space:
            yield from _held(value, undo, seen)


def _within(value: Any, depth: int) -> Iterator[Any]:
    """Yield an object, and those in it: items of small containers, and attributes of what is no part of torch."""
    if isinstance(value, (*PLAIN, type, types.ModuleType, types.FunctionType, torch.Tensor)):
        return
    yield value
    if not depth:
        return
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping | list | tuple):
        if len(value) <= MANY:
            inner = list(value.values() if isinstance(value, Mapping) else value)
    elif type(value).__module__.startswith("torch."):
        inner = scheduler_parts(value)[0]
    else:
        inner = list(getattr(value, "__dict__", {}).values())
    for each in inner:
        yield from _within(each, depth - 1)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the variable has no value yet
        return EMPTY
