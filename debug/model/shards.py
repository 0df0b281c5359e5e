"""Parts of a tensor that can be copied here: the local shard, the stored values of a sparse tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loopwise.wrappers import is_shard

from ..torch_internals import local_shape_and_offset

_PLAIN = (torch.Tensor, torch.nn.Parameter)


@dataclass(frozen=True, slots=True)
class Parts:
    """Tensors in the form in which they are saved."""

    names: tuple[str, ...]
    tensors: Sequence[torch.Tensor]
    """Strided local tensors; of a sparse tensor its indices and its values."""
    shards: tuple[dict[str, list[int]] | None, ...]
    """Place of each tensor in a larger one; empty if there are no shards."""
    local: Sequence[torch.Tensor]
    """The local part of each tensor, for statistics."""


def strided(names: tuple[str, ...], tensors: Sequence[torch.Tensor]) -> Parts:
    """Return tensors of any kind in the form in which they are saved; plain tensors are returned as they are.

    Raises:
        TypeError: a tensor is on the ``meta`` device, without data.
    """
    layout = torch.strided
    if all([type(t) in _PLAIN and t.layout is layout and not t.is_meta for t in tensors]):
        return Parts(names, tensors, (), tensors)
    stored_names: list[str] = []
    stored: list[torch.Tensor] = []
    shards: list[dict[str, list[int]] | None] = []
    local_parts: list[torch.Tensor] = []
    for name, tensor in zip(names, tensors, strict=True):
        part, shard = _shard(tensor.detach())
        if part.device.type == "meta":
            raise TypeError(f"{name} has no data: it is on the meta device")
        local_parts.append(part)
        for suffix, strided_tensor in _stored(part):
            stored_names.append(name + suffix)
            stored.append(strided_tensor)
            shards.append(shard)
    return Parts(tuple(stored_names), stored, tuple(shards) if any(shards) else (), local_parts)


def _shard(tensor: Any) -> tuple[torch.Tensor, dict[str, list[int]] | None]:
    """Return the local part of a tensor, and its place in the whole if it is a shard."""
    if not is_shard(tensor):
        return tensor, None
    _, start = local_shape_and_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), {"shape": list(tensor.shape), "start": list(start)}


def local(tensor: Any) -> torch.Tensor:
    """Return this rank's part of a sharded tensor, and any other tensor unchanged."""
    return tensor.to_local() if is_shard(tensor) else tensor  # type: ignore[no-any-return]


def _stored(tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Return the strided tensors that a tensor consists of, each with a suffix for its name."""
    if tensor.layout is torch.strided:
        return [("", tensor)]
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return [(".indices", tensor.indices()), (".values", tensor.values())]
    return [("", tensor.to_dense())]


def gathered(tensors: Sequence[Any]) -> list[torch.Tensor]:
    """Return whole tensors, put together from all ranks' shards: a collective if there are shards."""
    return [t.full_tensor() if is_shard(t) else t for t in tensors]
