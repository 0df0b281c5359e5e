"""Qualified names of modules and parameters of one or several models, as the user wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from loopwise.errors import InputError
from loopwise.wrappers import unwrap

WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""What torch.compile and torch.distributed put into names."""


def by_key(given: Any, kind: type, what: str) -> dict[str, Any]:
    """One object, or several by name, as a dict; the key of a lone one is empty.

    Raises:
        InputError: something else.
    """
    found = dict(given) if isinstance(given, Mapping) else {"": given}
    if not found or not all(isinstance(value, kind) for value in found.values()):
        raise InputError(
            f"{what}={given!r}",
            f"{kind.__name__}, or a dict from names to such",
            "arguments in another order",
            "Watch(model, optimizer, run=...)",
        )
    return found


def plain(name: str) -> str:
    """A name without what wrappers put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def modules(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Prefix (``layer4.1.conv2.``; empty for a lone model itself) and module, each module once."""
    for key, model in models.items():
        for name, module in root(model).named_modules():
            yield _prefix(key) + plain(f"{name}." if name else ""), module


def parameters(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and parameter, each parameter once."""
    for key, model in models.items():
        for name, parameter in root(model).named_parameters():
            yield _prefix(key) + plain(name), parameter


def device(models: Mapping[str, nn.Module]) -> torch.device:
    """An accelerator that models are on, or the CPU."""
    return next((d for d in devices(models) if d.type != "cpu"), torch.device("cpu"))


def devices(models: Mapping[str, nn.Module]) -> list[torch.device]:
    """All that models are on."""
    return list(dict.fromkeys(p.device for model in models.values() for p in model.parameters()))


def identities(models: Mapping[str, nn.Module]) -> tuple[int, ...]:
    """Of all modules and parameters: another tuple where one came or went."""
    found: list[int] = []
    seen = {id(None)}
    modules: list[nn.Module | None] = list(models.values())
    for module in modules:
        if id(module) in seen:
            continue
        inside = module.__dict__  # an attribute of a module is looked for in three places
        seen.add(id(module))
        found.append(id(module))
        if inside["_parameters"]:
            found.extend(map(id, inside["_parameters"].values()))
        if inside["_modules"]:
            modules.extend(inside["_modules"].values())
    return tuple(found)


def of_call(prefix: str, name: str, call: int) -> str:
    """The name of a tensor of a module's ``call``-th call in a step, counted from 0: ``fc#1.output.0``."""
    return f"{prefix.removesuffix('.')}#{call}.{name.removeprefix(prefix)}" if call else name


def _prefix(key: str) -> str:
    return f"{key}." if key else ""


def root(model: nn.Module) -> nn.Module:
    """The model beneath the wrappers of DDP and torch.compile, in any order."""
    inner = unwrap(getattr(model, "_orig_mod", model))
    return inner if inner is model else root(inner)
