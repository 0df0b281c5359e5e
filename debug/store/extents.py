"""Places in segments that blocks take, so that no two blocks of an index share bytes."""

from __future__ import annotations

import bisect


class Extents:
    """Disjoint places in one segment.

    Writers only append.  An index in which many blocks share the same bytes would let a small folder fill the memory of
    a reader.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._taken: list[tuple[int, int]] = []
        """End and step of the place at each start."""

    def take(self, start: int, length: int, step: int) -> bool:
        """Take a place, and return whether it is free; the same step may take its place again."""
        if not length:
            return True
        end, at = start + length, bisect.bisect_left(self._starts, start)
        if at < len(self._starts) and self._starts[at] == start and self._taken[at] == (end, step):
            return True
        if (at and self._taken[at - 1][0] > start) or (at < len(self._starts) and self._starts[at] < end):
            return False
        self._starts.insert(at, start)
        self._taken.insert(at, (end, step))
        return True
