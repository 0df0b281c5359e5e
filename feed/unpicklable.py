"""The attribute because of which an object of the user cannot be pickled or copied."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

DEPTH = 12
"""Most attributes in a path, such as ``dataset.transform.fn``."""


def culprit(name: str, value: Any, attempt: Callable[[Any], Any], depth: int = DEPTH) -> tuple[str, Any]:
    """Return the path and the value of the innermost attribute or item because of which ``attempt(value)`` fails.

    Args:
        name: path of ``value``, such as ``dataset``.
        value: the object, for which ``attempt`` fails.
        attempt: function that pickles or copies an object.
        depth: most attributes to go down.
    """
    for inner_name, part in _parts(name, value) if depth else ():
        try:
            attempt(part)
        except Exception:
            return culprit(inner_name, part, attempt, depth - 1)
    return name, value


def _parts(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return paths and values of what is pickled with a value."""
    if isinstance(value, (dict, types.MappingProxyType)):
        return [(f"{name}[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [(f"{name}[{number}]", part) for number, part in enumerate(value)]
    if isinstance(value, functools.partial):
        return [
            (f"{name}.func", value.func),
            *_parts(f"{name}.args", value.args),
            *_parts(f"{name}.keywords", value.keywords),
        ]
    if isinstance(value, types.MethodType):
        return [(f"{name}.__self__", value.__self__)]
    if isinstance(value, types.FunctionType):
        outer = inspect.getclosurevars(value).nonlocals
        return [(f"{name} (its variable {key})", part) for key, part in outer.items()]
    return [(f"{name}.{key}", part) for key, part in _state(value).items()]


def _state(value: Any) -> dict[str, Any]:
    """Return the attributes that are pickled: those that ``__getstate__`` leaves."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        return {}
    state = reduced[2] if isinstance(reduced, tuple) and len(reduced) > 2 else None
    both = state if isinstance(state, tuple) else (state,)  # attributes, and those in slots
    return {key: part for each in both if isinstance(each, dict) for key, part in each.items()}
