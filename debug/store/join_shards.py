"""Join the shards of one tensor to the whole tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from loopwise.errors import StateError

from .index import Block
from .layout import Entry

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Index of a shard's first element in the whole tensor, and shape of the shard."""
Read = Callable[[Block, Entry], torch.Tensor]


def joined(shards: Sequence[tuple[Block, Entry]], read: Read) -> torch.Tensor:
    """Return the whole tensor.

    Args:
        shards: blocks of one step by rank, and the entry of the tensor in each block.
        read: reads the tensor of an entry.

    Raises:
        StateError: the shards do not cover the tensor.
    """
    whole = shards[0][1].whole
    places: dict[Box, tuple[Block, Entry]] = {}
    for block, entry in sorted(shards, key=lambda shard: -shard[0].time):
        if entry.start is None or entry.whole != whole or not entry.length:
            continue
        box = entry.start, entry.shape
        if box in places:  # a replica
            continue
        if any(_overlap(box, other) for other in places):
            break  # this shard and older ones are of ranks that were not resumed
        places[box] = block, entry
    if sum(math.prod(size) for _, size in places) < math.prod(whole):
        ranks = ", ".join(str(shard[0].rank) for shard in shards)
        block, entry = shards[0]
        raise StateError(
            f"step {block.step}: the shards of {entry.name!r} on rank {ranks} do not cover {entry.whole}",
            "shards of all ranks",
            "other ranks have not written this step yet, or their files are lost",
            f"wait, or read one rank's shard with rank={block.rank}",
        )
    if len(places) == 1:
        return read(*next(iter(places.values())))
    values = {box: read(block, entry) for box, (block, entry) in places.items()}
    tensor = torch.empty(whole, dtype=shards[0][1].dtype)  # the shards, of as many bytes, are there
    for (start, sizes), value in values.items():
        part = tensor
        for dimension, (first, size) in enumerate(zip(start, sizes, strict=True)):
            part = part.narrow(dimension, first, size)
        part.copy_(value)
    return tensor


def _overlap(box: Box, other: Box) -> bool:
    return all(
        start < other_start + other_size and other_start < start + size
        for start, size, other_start, other_size in zip(*box, *other, strict=True)
    )
