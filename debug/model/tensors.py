"""Names for the tensors in what a module takes and gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

Named = list[tuple[str, torch.Tensor]]


def tensors(prefix: str, value: Any) -> Named:
    """Name and tensor for each tensor in tuples, lists, mappings and dataclasses, however nested.

    A lone tensor is entry 0: ``tensors("fc.output", t)`` gives ``[("fc.output.0", t)]``.
    """
    found: Named = []
    _add(found, prefix, (value,) if isinstance(value, torch.Tensor) else value)
    return found


def _add(found: Named, prefix: str, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        found.append((prefix, value))
    elif isinstance(value, Mapping):
        for key in value:
            _add(found, f"{prefix}.{key}", value[key])
    elif isinstance(value, (tuple, list)):
        for place, item in enumerate(value):
            _add(found, f"{prefix}.{place}", item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _add(found, f"{prefix}.{field.name}", getattr(value, field.name))
