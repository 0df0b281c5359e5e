"""Buffer that joins kept samples into full batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from loopwise import batch as batches

Concatenate = Callable[[Sequence[Any], Sequence[int]], Any]


@dataclass(slots=True)
class Samples:
    """A batch and tensors with one entry per sample that stay with it, such as indices and importance weights."""

    batch: Any
    size: int
    columns: dict[str, torch.Tensor] = field(default_factory=dict)

    def select(self, positions: torch.Tensor) -> Samples:
        """Return copies of the samples at ``positions``, int64."""
        columns = {name: values[positions] for name, values in self.columns.items()}
        return Samples(batches.index(self.batch, positions, self.size), len(positions), columns)

    def with_weights(self) -> Any:
        """Return the batch with the column ``weight``, if there is one, as a last element, or as ``"weights"`` of a dict."""
        batch, weights = self.batch, self.columns.get("weight")
        if weights is None:
            return batch
        if isinstance(batch, dict):
            return {**batch, "weights": weights}
        if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
            return type(batch)([*batch, weights])
        return batch, weights


def join(parts: Sequence[Samples], concatenate: Concatenate) -> Samples:
    """Return the samples of all parts, in order."""
    if len(parts) == 1:
        return parts[0]
    sizes = [part.size for part in parts]
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in parts[0].columns}
    return Samples(concatenate([part.batch for part in parts], sizes), sum(sizes), columns)


class Buffer:
    """Joins kept samples into full batches, in order.

    Besides the samples of the last ``put`` it holds copies of fewer left-over samples than a batch, and one batch more
    while that is in use: never more than two batches.
    """

    def __init__(self, concatenate: Concatenate) -> None:
        self._concatenate = concatenate
        self._rest: Samples | None = None
        self._source: Samples | None = None
        self._kept = torch.empty(0, dtype=torch.int64)

    @property
    def waiting(self) -> int:
        """Number of samples in the buffer."""
        return (self._rest.size if self._rest else 0) + len(self._kept)

    def put(self, source: Samples, kept: torch.Tensor) -> None:
        """Add the samples at the positions ``kept``, int64, after ``take`` has returned ``None`` for the last ones."""
        self._source, self._kept = source, kept

    def take(self, size: int) -> Samples | None:
        """Return the next batch of ``size`` samples, or ``None`` if there are too few."""
        source, kept = self._source, self._kept
        if source is None:
            return None
        if self._rest is None and source.size == size == len(kept):
            self._clear()
            return source  # the wrapped loader's own batch, unchanged
        missing = size - (self._rest.size if self._rest else 0)
        joined = self._join(kept[:missing])
        if len(kept) < missing:
            self._rest = joined
            self._clear()
            return None
        self._rest, self._kept = None, kept[missing:]
        return joined

    def drain(self) -> Samples | None:
        """Remove and return all samples, or ``None`` if there are none."""
        samples, self._rest = self.peek(), None
        self._clear()
        return samples

    def peek(self) -> Samples | None:
        """Return all samples in the buffer, in order, without removing them."""
        return self._join(self._kept)

    def _join(self, positions: torch.Tensor) -> Samples | None:
        """Return the left-over samples followed by copies of those at ``positions`` of the last ``put``."""
        parts = [self._rest] if self._rest else []
        if self._source is not None and len(positions):
            parts.append(self._source.select(positions))
        return join(parts, self._concatenate) if parts else None

    def _clear(self) -> None:
        self._source, self._kept = None, self._kept[:0]
