"""Groups of tensors and tables that the writer places in a block."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

ALIGNMENT = 64
"""Alignment of tensors and tables in bytes: a cache line, and enough for every dtype."""
Names = tuple[str, ...]
Signature = tuple[tuple[torch.dtype, torch.Size], ...]
"""Dtype and shape of each tensor of a group."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that one collection saved together, or one table of their statistics."""

    collection: str
    names: Names
    signature: Signature
    offsets: tuple[int, ...]
    """Bytes from the start of the block: of each tensor, or of the table alone."""
    columns: Names = ()
    """Statistics of a table; empty for tensors."""
    shards: tuple[Any, ...] = field(default=(), compare=False)
    """Place of each tensor in a larger one, if the tensors are shards."""

    def record(self) -> dict[str, Any]:
        """Return the entry of the group in the index."""
        if self.columns:
            of = [[str(dtype).removeprefix("torch."), list(shape)] for dtype, shape in self.signature]
            table = {"collection": self.collection, "rows": list(self.names), "columns": list(self.columns)}
            return table | {"offset": self.offsets[0]} | ({"of": of} if of else {})
        shards = self.shards or (None,) * len(self.names)
        tensors = [
            [name, str(dtype).removeprefix("torch."), list(shape), offset, dtype.itemsize * shape.numel()]
            + ([shard] if shard else [])
            for name, (dtype, shape), offset, shard in zip(
                self.names, self.signature, self.offsets, shards, strict=True
            )
        ]
        return {"collection": self.collection, "tensors": tensors}
