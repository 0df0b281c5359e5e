"""Kept samples on their way to a full batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from loopwise import batch as batches

Concatenate = Callable[[Sequence[Any], Sequence[int]], Any]


class Buffer:
    """Joins kept samples into batches of ``size``, in order.

    Holds copies of fewer than ``size`` left-over samples, and while a pool is being handed out one
    batch more: never more than two batches beyond the pool itself.
    """

    def __init__(self, size: int, concatenate: Concatenate) -> None:
        self.size = size
        self.waiting = 0
        self._rest: Any = None
        self._concatenate = concatenate

    def fill(self, pool: Any, length: int, kept: torch.Tensor) -> Iterator[tuple[Any, int]]:
        """Add the samples ``kept`` (int64 indices) of ``pool``; yield each batch that gets full."""
        if not self.waiting and length == self.size == len(kept):
            yield pool, length  # the loader's own batch, untouched
            return
        while self.waiting + len(kept) >= self.size:
            take = self.size - self.waiting
            self._add(batches.index(pool, kept[:take], length), take)
            kept = kept[take:]
            yield self._take()
        if len(kept):
            self._add(batches.index(pool, kept, length), len(kept))

    def drain(self) -> Iterator[tuple[Any, int]]:
        """Yield what is left, if anything."""
        if self.waiting:
            yield self._take()

    def _add(self, part: Any, length: int) -> None:
        if self.waiting:
            part = self._concatenate([self._rest, part], [self.waiting, length])
        self._rest, self.waiting = part, self.waiting + length

    def _take(self) -> tuple[Any, int]:
        full = self._rest, self.waiting
        self._rest, self.waiting = None, 0
        return full
