"""The training process's side: tensors as views of extents, which are released when the last view is gone."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from .extents import Place
from .file import SharedFile

MOST_HELD = 4096
"""Most extents of one worker that the user's batches may hold; further batches are copied into private memory.  Each extent is
a mapping in two processes, and the mappings of all workers are limited by ``file.MOST_MAPPED``, too."""


class Views:
    """Views of one worker's shared file.

    ``released`` is filled by the finalizers of the views, in any thread.  Nothing is locked: appending to a deque is atomic.
    """

    def __init__(self, file: SharedFile) -> None:
        self._file = file
        self._mappings: dict[Place, Any] = {}
        self._held: dict[Place, weakref.ref[Any]] = {}
        self._released: deque[Place] = deque()

    @property
    def held(self) -> int:
        """Return the number of extents that batches of the user hold."""
        return len(self._held)

    @property
    def held_bytes(self) -> int:
        """Return the bytes of those extents."""
        return sum(length for _, length in tuple(self._held))

    def map(self, places: Sequence[Place]) -> list[Any]:
        """Return the memory of extents, which stays valid when this object is closed."""
        return [self._mapping(place) for place in places]

    def arrays(
        self, places: Sequence[Place], sizes: Sequence[int], mappings: Sequence[Any] | None = None
    ) -> list[Any]:
        """Return the extents as writable arrays of bytes, each of which holds its extent while it or a view of it lives.

        Args:
            places: the extents.
            sizes: bytes in use of each.
            mappings: their memory, by an earlier ``map``; default: it is mapped now.
        """
        mappings = self.map(places) if mappings is None else mappings
        return [self._array(*each) for each in zip(places, sizes, mappings, strict=True)]

    def copies(
        self, places: Sequence[Place], sizes: Sequence[int], mappings: Sequence[Any] | None = None
    ) -> list[Any]:
        """Return copies of the extents in private memory, and release the extents; the arguments are those of ``arrays``."""
        mappings = self.map(places) if mappings is None else mappings
        arrays = [
            np.frombuffer(mapping, np.uint8, size).copy()
            for mapping, size in zip(mappings, sizes, strict=True)
        ]
        self.drop(places)
        return arrays

    def read(self, places: Sequence[Place]) -> list[Any]:
        """Return copies of the extents as the file has them, and release the extents; no memory is mapped."""
        copies = [self._file.read(*place) for place in places]
        self.drop(places)
        return copies

    def drop(self, places: Sequence[Place]) -> None:
        """Release extents that no batch uses."""
        self._released.extend(places)

    def take_released(self) -> list[Place]:
        """Return the extents that were released since the last call."""
        released = []
        while self._released:
            released.append(self._released.popleft())
        return released

    def forget(self, places: Sequence[Place]) -> None:
        """Unmap extents that the worker has given back to the system."""
        for place in places:
            self._mappings.pop(place, None)

    def close(self) -> None:
        """Unmap all extents that no batch holds; the others go with their batches."""
        self._mappings.clear()

    def _array(self, place: Place, size: int, mapping: Any) -> Any:
        array = np.frombuffer(memoryview(mapping), np.uint8, size)  # whose base is a memoryview of its own
        held, released = self._held, self._released

        def release(_: object) -> None:
            held.pop(place, None)
            released.append(place)

        # NumPy lets views of views refer to the array's base, not to the array
        held[place] = weakref.ref(array.base, release)
        return array

    def _mapping(self, place: Place) -> Any:
        if place not in self._mappings:
            self._mappings[place] = self._file.map(*place)
        return self._mappings[place]
