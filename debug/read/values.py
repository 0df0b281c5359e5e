"""Tensors and numbers of a run, read from its blocks."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray

from loopwise.errors import InputError, StateError

from ..statistics.table import single
from ..store.blocks import Blocks
from ..store.index import Block
from ..store.join_shards import joined
from ..store.layout import Layout
from .query import Query

Series = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Steps and values, of equal length."""


class TensorReader:
    """Reader of the tensors, statistics and scalars of a run.

    All methods take ``mode``, within which ``step`` is counted (default: over all modes), and ``rank``, the rank that
    saved the values (default: the lowest one that has them).

    Args:
        query: query of the run's index.
        blocks: reader of the run's blocks.
    """

    def __init__(self, query: Query, blocks: Blocks) -> None:
        self._query, self._blocks = query, blocks

    def value(
        self, name: str, step: int, *, mode: str | None = None, rank: int | None = None
    ) -> torch.Tensor:
        """Return a tensor as it was saved, on the CPU, or a scalar as a float64 tensor of shape ().

        A large tensor of a local run is a private mapping of the file, read from disk when it is accessed.

        Raises:
            InputError: the step does not have the tensor.
            StateError: the bytes of the tensor, or of other ranks' shards, are lost or not written yet.
        """
        blocks = self._query.blocks(step, mode, rank)
        places = [(block, entry) for block in blocks if (entry := block.layout.tensor(name)) is not None]
        if places:
            if rank is None and places[0][1].start is not None:
                return joined(places, self._blocks.tensor)
            return self._blocks.tensor(*places[0])
        for block in blocks:
            if "value" in (offsets := block.layout.statistic_offsets(name)):
                return torch.tensor(self._blocks.number(block, offsets["value"]), dtype=torch.float64)
        raise self._query.missing(name, [block.layout for block in blocks], "values")

    def statistics(
        self, name: str, step: int, *, mode: str | None = None, rank: int | None = None
    ) -> dict[str, float]:
        """Return all saved statistics of a tensor by name; an empty dict if only the tensor itself was saved.

        Raises:
            InputError: the step does not have the tensor.
            StateError: the bytes are lost.
        """
        blocks = self._query.blocks(step, mode, rank)
        first = next((block for block in blocks if name in block.layout), None)
        if first is None:
            raise self._query.missing(name, [block.layout for block in blocks], "statistics")
        offsets = first.layout.statistic_offsets(name).items()
        return {key: self._blocks.number(first, offset) for key, offset in offsets if key != "value"}

    def statistic(
        self, name: str, statistic: str, step: int, *, mode: str | None = None, rank: int | None = None
    ) -> float:
        """Return a saved statistic of a tensor, or compute it if the tensor itself was saved.

        The saved statistic of a sharded tensor describes one rank's shard.

        Raises:
            InputError: the step does not have the tensor, or there is no such statistic.
            StateError: the bytes are lost.
        """
        blocks = self._query.blocks(step, mode, rank)
        for block in blocks:
            if statistic in (offsets := block.layout.statistic_offsets(name)):
                return self._blocks.number(block, offsets[statistic])
        if not any(_has_values(name, block.layout) for block in blocks):
            raise self._query.missing(name, [block.layout for block in blocks], statistic)
        value = self.value(name, step, mode=mode, rank=rank)
        try:
            return single(value, statistic)
        except NotImplementedError:
            raise InputError(
                f"{statistic} of {name!r}, which is of {value.dtype}",
                "a dtype that PyTorch can compute with",
                "the dtype has no arithmetic",
                f"convert value({name!r}, {step}) yourself",
            ) from None

    def shape(
        self, name: str, step: int, *, mode: str | None = None, rank: int | None = None
    ) -> tuple[int, ...]:
        """Return the shape of a tensor, also if only statistics were saved.

        Raises:
            InputError: the step does not have the tensor, or its shape was not saved.
        """
        return self._described(name, step, mode, rank)[1]

    def dtype(self, name: str, step: int, *, mode: str | None = None, rank: int | None = None) -> torch.dtype:
        """Return the dtype of a tensor, also if only statistics were saved.

        Raises:
            InputError: the step does not have the tensor, or its dtype was not saved.
        """
        return self._described(name, step, mode, rank)[0]

    def _described(
        self, name: str, step: int, mode: str | None, rank: int | None
    ) -> tuple[torch.dtype, tuple[int, ...]]:
        blocks = self._query.blocks(step, mode, rank)
        for block in blocks:
            entry = block.layout.tensor(name)
            if entry is not None:
                sharded = rank is None and entry.start is not None
                return entry.dtype, entry.whole if sharded else entry.shape
        for block in blocks:
            if (described := block.layout.described(name)) is not None:
                return described
        raise self._query.missing(name, [block.layout for block in blocks], "dtype and shape")

    def series(
        self, name: str, statistic: str | None = None, *, mode: str | None = None, rank: int | None = None
    ) -> Series:
        """Return a scalar, or a statistic of a tensor, over all steps that have it.

        Steps whose bytes are lost are left out; ``verify`` lists them.

        Returns:
            Steps (int64) and values (float64), of equal length.

        Raises:
            InputError: no step has the scalar or statistic.
        """
        wanted = statistic or "value"
        offset_in = functools.cache(lambda layout: layout.statistic_offsets(name).get(wanted))
        places: list[tuple[int, Block, int | None]] = []
        for step, blocks in self._query.having(name, mode, rank):
            best = next((block for block in blocks if offset_in(block.layout) is not None), blocks[0])
            if offset_in(best.layout) is not None or _has_values(name, best.layout):
                places.append((step, best, offset_in(best.layout)))
        if not places:
            raise self._query.missing(name, self._query.layouts(mode), wanted)
        read = iter(self._blocks.numbers([(b, offset) for _, b, offset in places if offset is not None]))
        pairs = [
            (step, self._computed(name, statistic, block, rank) if offset is None else next(read))
            for step, block, offset in places
        ]
        known = [(step, value) for step, value in pairs if value is not None]
        return np.array([step for step, _ in known], np.int64), np.array([v for _, v in known], np.float64)

    def _computed(self, name: str, statistic: str | None, block: Block, rank: int | None) -> float | None:
        """Compute a number of a series that is in no table; ``None`` if the bytes are lost."""
        try:
            if statistic is not None:
                return self.statistic(name, statistic, block.step, rank=rank)
            value = self.value(name, block.step, rank=rank)
        except StateError:
            return None
        if value.numel() != 1:
            raise InputError(
                f"series({name!r}) of a tensor of shape {tuple(value.shape)}",
                "a scalar, or a statistic",
                "a tensor is no number",
                f"series({name!r}, 'mean'), or values({name!r})",
            )
        return float(value)

    def values(
        self, name: str, *, mode: str | None = None, rank: int | None = None
    ) -> tuple[NDArray[np.int64], list[torch.Tensor]]:
        """Return a tensor at all steps that saved it whole; steps whose bytes are lost are left out.

        Returns:
            Steps (int64) and tensors, of equal length.

        Raises:
            InputError: no step has the scalar or statistic.
        """
        steps, tensors, saved = [], [], False
        for step, blocks in self._query.having(name, mode, rank):
            if not any(_has_values(name, block.layout) for block in blocks):
                continue
            saved = True
            try:
                tensors.append(self.value(name, blocks[0].step, rank=rank))
            except StateError:
                continue
            steps.append(step)
        if not saved:
            raise self._query.missing(name, self._query.layouts(mode), "values")
        return np.array(steps, np.int64), tensors


def _has_values(name: str, layout: Layout) -> bool:
    return name in layout.tensors or "value" in layout.statistic_offsets(name)
