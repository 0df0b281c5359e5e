"""Kept samples on their way to full batches, within a pass over the data and from one pass to the next."""

from __future__ import annotations

import functools
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
    lists: batches.Lists = field(default_factory=dict)
    """Path of a list in the batch -> whether it holds one entry for each sample, as far as it is known."""

    def select(self, positions: torch.Tensor) -> Samples:
        """Return copies of the samples at ``positions``, int64."""
        columns = {name: values[positions] for name, values in self.columns.items()}
        batch = batches.index(self.batch, positions, self.size, self.lists)
        return Samples(batch, len(positions), columns, self.lists)

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
    """Return the samples of all parts, in order, with the columns that all parts have."""
    if len(parts) == 1:
        return parts[0]
    sizes = [part.size for part in parts]
    names = [name for name in parts[0].columns if all(name in part.columns for part in parts)]
    columns = {name: torch.cat([part.columns[name] for part in parts]) for name in names}
    if concatenate is batches.concatenate:
        concatenate = functools.partial(concatenate, lists=parts[0].lists)
    return Samples(concatenate([part.batch for part in parts], sizes), sum(sizes), columns, parts[0].lists)


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


NO_SAMPLES = torch.empty(0, dtype=torch.int64), torch.empty(0)
"""Indices and weights of no samples."""


class LeftOver:
    """Samples that wait for the next pass: those of planned passes by their index, others as they were loaded.

    Attributes:
        loaded: samples of a pass that was not planned.
        indices, weights: samples of a planned pass, int64 and float32 of shape (n,).
        first_indices, first_weights: those that the open pass began with.
    """

    loaded: Samples | None = None

    def __init__(self) -> None:
        self.indices, self.weights = NO_SAMPLES
        self.first_indices, self.first_weights = NO_SAMPLES

    def begin(self, planned: bool) -> None:
        """Begin a pass; a planned one begins with the samples that wait by their index."""
        self.first_indices, self.first_weights = NO_SAMPLES
        if planned:
            self.first_indices, self.first_weights = self.indices, self.weights
            self.indices, self.weights = NO_SAMPLES

    def take_loaded(self) -> Samples | None:
        """Remove and return the samples that wait as they were loaded."""
        samples, self.loaded = self.loaded, None
        return samples

    def weighted(self, weights: torch.Tensor, position: int) -> torch.Tensor:
        """Return the weights of samples from ``position`` on of a planned pass, of which the first keep their own."""
        own = self.first_weights[position : position + len(weights)]
        return torch.cat([own, weights[len(own) :]])

    def state_dict(self) -> dict[str, Any]:
        return {
            "loaded": saved(self.loaded),
            "planned": (self.indices, self.weights),
            "first": (self.first_indices, self.first_weights),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loaded = restored(state["loaded"])
        self.indices, self.weights = state["planned"]
        self.first_indices, self.first_weights = state["first"]


def saved(samples: Samples | None) -> tuple[Any, ...] | None:
    """Return samples as a tuple for a state."""
    return None if samples is None else (samples.batch, samples.size, samples.columns, dict(samples.lists))


def restored(state: tuple[Any, ...] | None) -> Samples | None:
    """Return the samples of a state."""
    return None if state is None else Samples(*state)
