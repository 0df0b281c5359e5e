"""Host memory that a step's tensors are copied into, in the order in which they come."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .append_file import PAGE
from .segments import ALIGNMENT

LEAST = 2**16
"""Bytes of the smallest piece of memory taken at a time."""
SEEN = 1024
"""Arrangements of tensors that a snapshot remembers its views for."""
Signature = tuple[tuple[torch.dtype, torch.Size], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Arrangement:
    """Where some tensors lie."""

    views: list[torch.Tensor]
    """Of the memory, one for each tensor."""
    gaps: list[torch.Tensor]
    """What lies between them."""
    offsets: tuple[int, ...]
    """Bytes from the start of the block."""
    end: int
    """Bytes of the present piece that are used then."""


class Snapshot:
    """One block in the making: preallocated, and taken again for a later step.

    Args:
        pinned: page-locked memory, into which a GPU copies without waiting.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._pieces: list[torch.Tensor] = []
        self._lengths: list[int] = []
        self._base = self._used = 0
        self._seen: dict[tuple[int, int, Signature], Arrangement] = {}
        self._before: list[Arrangement] = []
        self._now: list[Arrangement] = []

    def put(self, tensors: Sequence[torch.Tensor]) -> tuple[Signature, tuple[int, ...]]:
        """Copy strided tensors of any device and dtype; on a GPU the copy is only enqueued.

        To be called without gradients.

        Returns:
            Their dtypes and shapes, and their offsets in bytes from the start of the block.
        """
        signature = tuple([(tensor.dtype, tensor.shape) for tensor in tensors])
        key = (self._base, self._used, signature)
        if key not in self._seen:
            if len(self._seen) >= SEEN:
                self._seen.clear()
            with torch.inference_mode(False):  # of use outside of it, too
                self._seen[key] = self._arrange(signature)
        found = self._seen[key]
        if found.gaps and not self._as_before(found):
            torch._foreach_zero_(found.gaps)
        self._now.append(found)
        self._used = found.end
        if found.views:
            torch._foreach_copy_(found.views, list(tensors), non_blocking=True)
        return signature, found.offsets

    def copies(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy them and give the copies, which last until ``clear``."""
        self.put(tensors)
        return self._now[-1].views

    def _as_before(self, found: Arrangement) -> bool:
        """Whether the block that was here before had the same at this place, so that its gaps are zero still."""
        place = len(self._now)
        return place < len(self._before) and self._before[place] is found

    def _arrange(self, signature: Signature) -> Arrangement:
        lengths = [dtype.itemsize * shape.numel() for dtype, shape in signature]
        need = sum(_aligned(length) for length in lengths)
        if not self._pieces or self._used + need > self._pieces[-1].numel():
            self._grow(need)
        views, gaps, offsets, start = [], [], [], self._used
        for (dtype, shape), length in zip(signature, lengths, strict=True):
            end = start + _aligned(length)
            views.append(self._pieces[-1][start : start + length].view(dtype).view(shape))
            offsets.append(self._base + start)
            if start + length < end:
                gaps.append(self._pieces[-1][start + length : end])
            start = end
        return Arrangement(views, gaps, tuple(offsets), start)

    def _grow(self, need: int) -> None:
        piece = self._take(max(need, self._base + self._used, LEAST))
        if self._pieces:
            self._lengths.append(self._used)
            self._base += self._used
        self._pieces.append(piece)
        self._used = 0
        self._forget()

    def _take(self, size: int) -> torch.Tensor:
        memory = torch.zeros(size + PAGE, dtype=torch.uint8, device="cpu", pin_memory=self._pinned)
        start = -memory.data_ptr() % PAGE
        return memory[start : start + size]

    def _forget(self) -> None:
        self._seen.clear()
        self._before.clear()

    def chunks(self) -> list[memoryview]:
        """The block's bytes."""
        lengths = [*self._lengths, self._used]
        return [piece[:length].numpy().data for piece, length in zip(self._pieces, lengths, strict=False)]

    def clear(self) -> None:
        """Ready for another block; one piece of memory that holds as much as the last one."""
        self._before, self._now = self._now, []
        total, several = self._base + self._used, len(self._pieces) > 1
        self._lengths.clear()
        self._base = self._used = 0
        if several:
            self._pieces.clear()
            self._forget()
            self._pieces.append(self._take(total))


class Ring:
    """Snapshots that are filled and written in turn.

    Args:
        count: snapshots that there are; as long as no others are given back, host memory is at most so
            many saved steps.
        pinned: see ``Snapshot``.
    """

    def __init__(self, count: int, pinned: bool) -> None:
        self._free: queue.SimpleQueue[Snapshot] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(Snapshot(pinned))

    def take(self, wait: bool) -> Snapshot | None:
        """A free snapshot; ``None`` where there is none and it does not ``wait``."""
        try:
            return self._free.get(block=wait)
        except queue.Empty:
            return None

    def give_back(self, snapshot: Snapshot) -> None:
        """Let another step have it."""
        try:
            snapshot.clear()
        finally:  # without memory it takes some when it is filled
            self._free.put(snapshot)


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT
