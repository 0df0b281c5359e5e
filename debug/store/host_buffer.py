"""Host memory that a step's tensors are copied into, in the order of ``put``."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .. import torch_internals
from .append_file import PAGE
from .group import ALIGNMENT, Signature

LEAST = 2**16
"""Bytes of the smallest piece of memory that is allocated."""
SEEN = 1024
"""Number of arrangements of tensors whose views a buffer remembers."""


@dataclass(frozen=True, slots=True, eq=False)
class Arrangement:
    """Place of some tensors in a buffer."""

    views: list[torch.Tensor]
    """Views of the buffer, one for each tensor."""
    gaps: list[torch.Tensor]
    """Padding bytes between the tensors."""
    offsets: tuple[int, ...]
    """Bytes from the start of the block."""
    end: int
    """Bytes of the current piece of memory that are used after these tensors."""


class HostBuffer:
    """Memory for one block, allocated once and used again for later steps.

    Args:
        pinned: use page-locked memory, into which a GPU copies without waiting.
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
        """Copy strided tensors of any device and dtype into the buffer; copies from a GPU are only enqueued.

        The caller has switched gradients off.

        Returns:
            Dtypes and shapes of the tensors, and their offsets in bytes from the start of the block.
        """
        signature = tuple([(tensor.dtype, tensor.shape) for tensor in tensors])
        key = (self._base, self._used, signature)
        if key not in self._seen:
            if len(self._seen) >= SEEN:
                self._seen.clear()
            with (
                torch_internals.outside_inference()
            ):  # views made in inference mode cannot be used outside of it
                self._seen[key] = self._arrange(signature)
        arrangement = self._seen[key]
        place = len(self._now)
        if arrangement.gaps and self._before[place : place + 1] != [arrangement]:
            # the previous block had another arrangement here; with the same one the gaps are still zero
            torch_internals.zero_all(arrangement.gaps)
        self._now.append(arrangement)
        self._used = arrangement.end
        if arrangement.views:
            torch_internals.copy_all(arrangement.views, tensors, non_blocking=True)
        return signature, arrangement.offsets

    def copies(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Copy tensors into the buffer and return the copies, which last until ``clear``."""
        self.put(tensors)
        return self._now[-1].views

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
        piece = self._allocate(max(need, self._base + self._used, LEAST))
        if self._pieces:
            self._lengths.append(self._used)
            self._base += self._used
        self._pieces.append(piece)
        self._used = 0
        self._forget()

    def _allocate(self, size: int) -> torch.Tensor:
        memory = torch.zeros(size + PAGE, dtype=torch.uint8, device="cpu", pin_memory=self._pinned)
        start = -memory.data_ptr() % PAGE
        return memory[start : start + size]

    def _forget(self) -> None:
        self._seen.clear()
        self._before.clear()

    def chunks(self) -> list[memoryview]:
        """Return the bytes of the block."""
        lengths = [*self._lengths, self._used]
        return [piece[:length].numpy().data for piece, length in zip(self._pieces, lengths, strict=False)]

    def clear(self) -> None:
        """Prepare for another block; several pieces of memory are replaced by one of their total size."""
        self._before, self._now = self._now, []
        total, several = self._base + self._used, len(self._pieces) > 1
        self._lengths.clear()
        self._base = self._used = 0
        if several:
            self._pieces.clear()
            self._forget()
            self._pieces.append(self._allocate(total))


class BufferPool:
    """Buffers that are filled and written in turn.

    Args:
        count: number of buffers; host memory holds at most so many saved steps, unless further buffers are
            given back to the pool.
        pinned: see ``HostBuffer``.
    """

    def __init__(self, count: int, pinned: bool) -> None:
        self._free: queue.SimpleQueue[HostBuffer] = queue.SimpleQueue()
        for _ in range(count):
            self._free.put(HostBuffer(pinned))

    def take(self, wait: bool, seconds: float | None = None) -> HostBuffer | None:
        """Return a free buffer; ``None`` if there is none and ``wait`` is false, or none becomes free in ``seconds``."""
        try:
            return self._free.get(wait, seconds)
        except queue.Empty:
            return None

    def give_back(self, buffer: HostBuffer) -> None:
        """Clear a buffer and free it for another step; a buffer that an interrupt left half cleared is not used again."""
        try:
            buffer.clear()
        except Exception:
            self._free.put(buffer)  # it could not allocate memory, and allocates it when it is filled
            raise
        self._free.put(buffer)


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT
