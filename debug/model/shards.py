"""What of a tensor can be copied here: the local shard, the stored values, plain strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


@dataclass(frozen=True, slots=True)
class Parts:
    """Tensors taken apart for saving."""

    names: tuple[str, ...]
    tensors: Sequence[torch.Tensor]
    """Strided and local; of a sparse one its indices and its values."""
    shards: tuple[dict[str, list[int]] | None, ...]
    """Of each tensor its place in a larger one; empty where all are whole."""
    local: Sequence[torch.Tensor]
    """Local, one for each that was given, for statistics."""


def strided(names: tuple[str, ...], tensors: Sequence[torch.Tensor]) -> Parts:
    """Take tensors of any kind apart; plain ones pass as they are.

    Raises:
        TypeError: a tensor without data (on the ``meta`` device).
    """
    layout = torch.strided
    if all([type(t) in _PLAIN and t.layout is layout and not t.is_meta for t in tensors]):
        return Parts(names, tensors, (), tensors)
    found_names: list[str] = []
    found: list[torch.Tensor] = []
    shards: list[dict[str, list[int]] | None] = []
    whole: list[torch.Tensor] = []
    for name, tensor in zip(names, tensors, strict=True):
        part, shard = _shard(tensor.detach())
        if part.device.type == "meta":
            raise TypeError(f"{name} has no data: it is on the meta device")
        whole.append(part)
        for suffix, stored in _stored(part):
            found_names.append(name + suffix)
            found.append(stored)
            shards.append(shard)
    return Parts(tuple(found_names), found, tuple(shards) if any(shards) else (), whole)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _shard(tensor: torch.Tensor) -> tuple[torch.Tensor, dict[str, list[int]] | None]:
    if not isinstance(tensor, DTensor):
        return tensor, None
    _, start = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), {"shape": list(tensor.shape), "start": list(start)}


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a sharded tensor; a plain one is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _stored(tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The strided tensors that a tensor consists of, and what to call them beside its name."""
    if tensor.layout is torch.strided:
        return [("", tensor)]
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return [(".indices", tensor.indices()), (".values", tensor.values())]
    return [("", tensor.to_dense())]


def gathered(tensors: Sequence[Any]) -> list[torch.Tensor]:
    """Whole tensors from all ranks' shards.  Collective where there are shards."""
    return [t.full_tensor() if isinstance(t, DTensor) else t for t in tensors]
