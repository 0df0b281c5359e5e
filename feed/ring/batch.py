"""A batch that has arrived, in memory that waits for the user to take it and to drop it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..packing.unpack import unpack
from ..protocol import Counters
from .file import MOST_MAPPED, mapped
from .views import MOST_HELD, Views


class Batch:
    """A batch in memory of ``views``; calling it returns the batch.  If it is dropped uncalled, its memory is released.

    Args:
        views: of the file with the extents.
        counters: where copies are counted.
        body: packed form of the batch, as ``loopwise.feed.lanes.Reply.fields`` describes it.
        starts: offsets of the blocks in the only extent; ``None``: each block has an extent of its own.
        private: private memory in the place of extents, if the batch is in such memory.
    """

    def __init__(
        self,
        views: Views,
        counters: Counters,
        body: tuple[Any, ...],
        starts: Sequence[int] | None = None,
        private: list[Any] | None = None,
    ) -> None:
        self._views, self._counters = views, counters
        self._header, self._inline, self._places, self._sizes, *_ = body
        self._starts = starts
        self._private, self._mappings = private, []
        if private is not None:
            self._places = []
            return
        # now, since the worker may have ended and its file be closed when the batch is handed over
        try:
            self._mappings = views.map(self._places)
        except OSError:  # the process has no mappings left
            self._private, self._places = views.read(self._places), []

    def __call__(self) -> Any:
        """Return the batch, as views of shared memory unless too many are held."""
        arrays, starts, sizes = self._arrays(), self._starts, self._sizes
        if starts is not None and arrays:
            whole = arrays[0]
            arrays = [whole[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        return unpack(self._header, self._inline, arrays)

    def _arrays(self) -> list[Any]:
        places, self._places = self._places, []
        mappings, self._mappings = self._mappings, []
        if self._private is not None:
            self._counters.copies += 1
            return self._private
        sizes, take = self._sizes, self._views.arrays
        spans = [self._starts[-1] + sizes[-1]] * len(places) if self._starts else sizes
        if self._views.held + len(places) > MOST_HELD or mapped() > MOST_MAPPED:
            self._counters.copies += 1
            take = self._views.copies
        return take(places, spans, mappings)

    def __del__(self) -> None:
        self._views.drop(self._places)
