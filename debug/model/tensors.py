"""Names of the tensors in the arguments and outputs of modules."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

Named = list[tuple[str, torch.Tensor]]


def tensors(prefix: str, value: Any) -> Named:
    """Return names and tensors in nested tuples, lists, mappings and dataclasses.

    A tensor alone is entry 0: ``tensors("fc.output", t)`` returns ``[("fc.output.0", t)]``.
    """
    named: Named = []
    _add(named, prefix, (value,) if isinstance(value, torch.Tensor) else value)
    return named


def _add(named: Named, prefix: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        named.append((prefix, value))
    elif isinstance(value, Mapping):
        for key in value:
            _add(named, f"{prefix}.{key}", value[key])
    elif isinstance(value, (tuple, list)):
        for place, item in enumerate(value):
            _add(named, f"{prefix}.{place}", item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _add(named, f"{prefix}.{field.name}", getattr(value, field.name))
