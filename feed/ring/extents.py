"""The worker's side: extents of the shared file, used again once the training process has released them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..packing.memory import Block
from .file import PAGE, SharedFile, give_back

Place = tuple[int, int]
"""Offset of an extent in the file, and its length in bytes."""
WASTE = 2
"""An extent is used for a tensor of at least this fraction of its size (1 / WASTE)."""
STEP = 8
"""Sizes are rounded up to an eighth of the next lower power of two, so that batches of similar sizes share extents."""


def rounded(nbytes: int) -> int:
    """Return the length of an extent for ``nbytes`` bytes: whole pages, at most an eighth more."""
    step = max(PAGE, 1 << max(nbytes.bit_length() - 1 - STEP.bit_length() + 1, 0))
    return max(PAGE, -(-nbytes // step) * step)


class Extents:
    """Memory of one worker, in the sense of ``loopwise.feed.packing.memory``.

    An extent is written by the worker, sent, and released by the training process when the user's batch is gone.  The most
    recently released one is taken first, since its memory is likely to be in the processor's cache.

    Args:
        file: the shared file.
        batches: how many batches can be between the two processes, besides those that the user keeps for longer.  Free
            extents of more bytes than those batches have are given back to the system.
    """

    def __init__(self, file: SharedFile, batches: int) -> None:
        self._file, self._batches = file, batches
        self._end = PAGE
        self._mappings: dict[Place, Any] = {}
        self._free: list[Place] = []
        self._free_bytes = 0
        self._used = 0
        """Bytes allocated for the present batch."""
        self._largest = 0
        """Bytes of the largest batch so far."""
        self._retired: list[Place] = []

    def allocate(self, nbytes: int) -> Block:
        """Return an extent of at least ``nbytes`` bytes."""
        place = self._take(nbytes) or self._extend(rounded(nbytes))
        self._used += place[1]
        return Block(np.frombuffer(self._mappings[place], np.uint8), place)

    def free(self, block: Block) -> None:
        """Take back an extent that was not sent."""
        self._used = max(0, self._used - block.place[1])
        self._release(block.place)

    def begin(self, released: list[Place]) -> None:
        """Begin a batch.

        Args:
            released: extents whose batches the user has dropped.
        """
        self._largest = max(self._largest, self._used)
        self._used = 0
        for place in released:
            self._release(place)
        while self._free_bytes > self._batches * self._largest and self._free:
            self._retire(self._free.pop(0))

    def take_retired(self) -> list[Place]:
        """Return the extents that were given back to the system since the last call."""
        retired, self._retired = self._retired, []
        return retired

    def _take(self, nbytes: int) -> Place | None:
        """Take the smallest free extent that is large enough and not too large; of equal ones the last."""
        best = -1
        for number, place in enumerate(self._free):
            if nbytes <= place[1] <= WASTE * max(nbytes, PAGE) and (
                best < 0 or place[1] <= self._free[best][1]
            ):
                best = number
        if best < 0:
            return None
        place = self._free.pop(best)
        self._free_bytes -= place[1]
        return place

    def _extend(self, length: int) -> Place:
        place = self._end, length
        self._end += length
        os.ftruncate(self._file.descriptor, self._end)
        self._mappings[place] = self._file.map(*place)
        return place

    def _release(self, place: Place) -> None:
        self._free.append(place)
        self._free_bytes += place[1]

    def _retire(self, place: Place) -> None:
        self._free_bytes -= place[1]
        give_back(self._mappings.pop(place))
        self._retired.append(place)
