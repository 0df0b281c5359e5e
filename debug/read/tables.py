"""Statistics of a run for plots: only a few steps, evenly spread, are read."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loopwise.errors import StateError

from ..store.blocks import Blocks
from ..store.columns import Columns, Floats
from ..store.index import Block
from ..store.layout import Layout

MOST = 400
"""Steps of a plot over steps; a wide screen shows two pixels of each."""
Steps = NDArray[np.int64]


@dataclass
class Table:
    """Statistics of the tensors of a kind over steps.

    Attributes:
        steps: steps counted over all modes.
        names: parameters or modules, in order of first appearance.
        shapes: shape of each tensor; ``()`` if it is not known.
        values: statistic -> float64 of shape (names, steps); NaN if a step does not have it.
    """

    steps: Steps
    names: list[str] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    values: dict[str, Floats] = field(default_factory=dict)
    _rows: dict[str, int] = field(default_factory=dict, repr=False)

    def __getitem__(self, statistic: str) -> Floats:
        """Return a statistic as an array of shape (names, steps), all NaN if it was not saved."""
        empty = np.full((len(self.names), len(self.steps)), np.nan)
        return self.values.get(statistic, empty)

    def add(self, step: int, columns: Columns, statistic: str) -> None:
        """Add one statistic of one step.

        Args:
            step: one of ``steps``.
            columns: the statistic, of the tensors that have it.
            statistic: name of the statistic.
        """
        for name, shape in zip(columns.names, columns.shapes, strict=True):
            if name not in self._rows:
                self._rows[name] = len(self.names)
                self.names.append(name)
                self.shapes.append(shape)
        values = self.values.setdefault(statistic, np.empty((0, len(self.steps))))
        if len(values) < len(self.names):
            more = np.full((len(self.names) - len(values), len(self.steps)), np.nan)
            values = self.values[statistic] = np.concatenate((values, more))
        place = np.searchsorted(self.steps, step)
        values[[self._rows[name] for name in columns.names], place] = columns.values[0]


def spread(steps: Sequence[int], most: int = MOST) -> list[int]:
    """Return at most ``most`` of the steps, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[i] for i in np.linspace(0, len(steps) - 1, most).round().astype(int)]


def tables(
    by_step: Mapping[int, Block], blocks: Blocks, kinds: Mapping[str, Sequence[str]], most: int
) -> dict[str, Table]:
    """Read statistics by kind.

    Args:
        by_step: the blocks to choose from, by step in order.
        blocks: reader of their bytes.
        kinds: kind -> statistics.
        most: largest number of steps that are read of each kind.
    """

    @functools.cache
    def has(layout: Layout, kind: str) -> bool:
        return any(layout.cells(kind, (statistic,)).names for statistic in kinds[kind])

    chosen = {
        kind: spread([step for step, block in by_step.items() if has(block.layout, kind)], most)
        for kind in kinds
    }
    result = {kind: Table(np.array(steps, np.int64)) for kind, steps in chosen.items()}
    for step in sorted(set().union(*chosen.values())):
        layout, read = by_step[step].layout, functools.partial(blocks.read, by_step[step])
        try:
            numbers = layout.numbers(read)
        except StateError:
            continue  # lost bytes leave a gap; `loopwise debug verify` lists them
        for kind, statistics in kinds.items():
            for statistic in statistics if step in chosen[kind] else ():
                columns = layout.columns(numbers, kind, (statistic,))
                if columns.names:
                    result[kind].add(step, columns, statistic)
    return result
