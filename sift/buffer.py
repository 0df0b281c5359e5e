"""Kept samples on their way to a full batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from loopwise import batch as batches

Concatenate = Callable[[Sequence[Any], Sequence[int]], Any]


@dataclass(slots=True)
class Part:
    """Samples, and what travels with them: tensors with one entry a sample, such as their weights."""

    batch: Any
    size: int
    along: dict[str, torch.Tensor] = field(default_factory=dict)

    def select(self, positions: torch.Tensor) -> Part:
        along = {name: values[positions] for name, values in self.along.items()}
        return Part(batches.index(self.batch, positions, self.size), len(positions), along)


def join(parts: Sequence[Part], concatenate: Concatenate) -> Part:
    """The samples of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    sizes = [part.size for part in parts]
    along = {name: torch.cat([part.along[name] for part in parts]) for name in parts[0].along}
    return Part(concatenate([part.batch for part in parts], sizes), sum(sizes), along)


class Buffer:
    """Joins kept samples into batches of ``size``, in order.

    Beside the part that was offered last it holds copies of fewer than ``size`` left-over samples,
    and while one is handed out one batch more: never more than two batches.
    """

    def __init__(self, size: int, concatenate: Concatenate) -> None:
        self.size = size
        self._concatenate = concatenate
        self._rest: Part | None = None
        self._offered: Part | None = None
        self._kept = torch.empty(0, dtype=torch.int64)

    @property
    def waiting(self) -> int:
        """Samples in the buffer."""
        return (self._rest.size if self._rest else 0) + len(self._kept)

    def offer(self, part: Part, kept: torch.Tensor) -> None:
        """Add the samples ``kept`` (int64 positions) of ``part``; the last offer must have been taken."""
        self._offered, self._kept = part, kept

    def take(self) -> Part | None:
        """The next full batch; ``None`` while there are too few samples for one."""
        offered, kept = self._offered, self._kept
        if offered is None:
            return None
        if self._rest is None and offered.size == self.size == len(kept):
            self._clear()
            return offered  # the loader's own batch, untouched
        missing = self.size - (self._rest.size if self._rest else 0)
        if len(kept) >= missing:
            self._kept = kept[missing:]
            return self._joined(kept[:missing])
        self._rest = self._joined(kept) if len(kept) else self._rest
        self._clear()
        return None

    def drain(self) -> Part | None:
        """What is left, if anything."""
        rest = self._joined(self._kept) if self._offered and len(self._kept) else self._rest
        self._clear()
        self._rest = None
        return rest

    def peek(self) -> Part | None:
        """Copies of all samples in the buffer, in order; they stay."""
        parts = [self._rest] if self._rest else []
        if self._offered is not None and len(self._kept):
            parts.append(self._offered.select(self._kept))
        return join(parts, self._concatenate) if parts else None

    def _joined(self, positions: torch.Tensor) -> Part:
        assert self._offered is not None
        part = self._offered.select(positions)
        if self._rest is not None:
            part, self._rest = join([self._rest, part], self._concatenate), None
        return part

    def _clear(self) -> None:
        self._offered, self._kept = None, self._kept[:0]
