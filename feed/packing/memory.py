"""Memory for the large tensors of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

LARGE = 32 * 1024
"""Least bytes of a tensor that gets a block of its own.  Smaller tensors of a batch share one buffer: a block costs about
10 us in the training process, the time of copying 60 KB."""
INLINE = 256 * 1024
"""Most bytes of small tensors that travel within the message; more get a block."""


@dataclass(frozen=True, slots=True)
class Block:
    """Writable memory for one tensor, or for the small tensors of a batch."""

    buffer: Any
    """Writable buffer of bytes, at least as long as was asked for."""
    place: Any
    """The block's identification for whoever reads it."""


class Memory(Protocol):
    """Source of blocks in a worker."""

    def allocate(self, nbytes: int) -> Block:
        """Return a block of at least ``nbytes`` bytes, which nobody else reads or writes."""

    def free(self, block: Block) -> None:
        """Take back a block that is not sent."""


class HeapMemory:
    """Blocks of ordinary memory, for workers whose batches are copied on their way anyway."""

    def allocate(self, nbytes: int) -> Block:
        """Return a new block; its place is ``None``."""
        return Block(memoryview(bytearray(nbytes)), None)

    def free(self, block: Block) -> None:
        """Do nothing: Python frees the memory."""
