"""Qualified names of modules and parameters of one or several models, without the prefixes of wrappers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from loopwise.errors import InputError
from loopwise.torch_internals import original
from loopwise.wrappers import unwrap

from ..torch_internals import WRAPPER_NAMES, module_members


def by_key(objects: Any, kind: type, argument: str) -> dict[str, Any]:
    """Return one object, or several by name, as a dict; the key of a single one is empty.

    Args:
        objects: an object or a mapping.
        kind: class of the objects.
        argument: name of the argument, for the error.

    Raises:
        InputError: an object of another class, or an empty mapping.
    """
    named = dict(objects) if isinstance(objects, Mapping) else {"": objects}
    if not named or not all(isinstance(value, kind) for value in named.values()):
        raise InputError(
            f"{argument}={objects!r}",
            f"{kind.__name__}, or a dict from names to {kind.__name__} objects",
            "arguments in another order",
            "Watch(model, optimizer, run=...)",
        )
    return named


def plain(name: str) -> str:
    """Return a name without the prefixes of wrappers."""
    for wrapper in WRAPPER_NAMES:
        name = name.replace(wrapper, "")
    return name


def modules(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Yield prefix (``layer4.1.conv2.``; empty for a single model itself) and module, each module once."""
    for key, model in models.items():
        for name, module in root(model).named_modules():
            yield _prefix(key) + plain(f"{name}." if name else ""), module


def parameters(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and parameter, each parameter once."""
    for key, model in models.items():
        for name, parameter in root(model).named_parameters():
            yield _prefix(key) + plain(name), parameter


def device(models: Mapping[str, nn.Module]) -> torch.device:
    """Return an accelerator that models are on, or the CPU."""
    return next((d for d in devices(models) if d.type != "cpu"), torch.device("cpu"))


def devices(models: Mapping[str, nn.Module]) -> list[torch.device]:
    """Return all devices that models are on."""
    return list(dict.fromkeys(p.device for model in models.values() for p in model.parameters()))


def identities(models: Mapping[str, nn.Module]) -> tuple[int, ...]:
    """Return the identities of all modules and parameters; the tuple changes if one is added or removed."""
    identities: list[int] = []
    seen = set[int]()
    modules: list[nn.Module | None] = list(models.values())
    for module in modules:
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        identities.append(id(module))
        children, parameters = module_members(module)
        if parameters:
            identities.extend(map(id, parameters.values()))
        if children:
            modules.extend(children.values())
    return tuple(identities)


def of_call(prefix: str, name: str, call: int) -> str:
    """Return the name of a tensor of a module's ``call``-th call in a step, counted from 0: ``fc#1.output.0``."""
    return f"{prefix.removesuffix('.')}#{call}.{name.removeprefix(prefix)}" if call else name


def _prefix(key: str) -> str:
    return f"{key}." if key else ""


def root(model: nn.Module) -> nn.Module:
    """Return the model without the wrappers of DDP and torch.compile, in any order."""
    inner = unwrap(original(model))
    return inner if inner is model else root(inner)
