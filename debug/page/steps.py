"""Statistics of many saved steps at once, for plots: few steps, evenly spread, and no others read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loopwise.errors import StateError
from loopwise.run import Run

from ..store.blocks import Blocks
from ..store.columns import Floats
from ..store.index import Block, Index
from ..store.layout import Layout

MOST = 400
"""Steps of a plot over steps; a wide screen shows two pixels of each."""
VIEWS = 64
"""Layouts that are remembered: there is one for each shape of outputs."""
Steps = NDArray[np.int64]


def spread(steps: Sequence[int], most: int = MOST) -> list[int]:
    """Some of them, evenly, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[i] for i in np.linspace(0, len(steps) - 1, most).round().astype(int)]


@dataclass
class Table:
    """Statistics of the tensors of a kind over steps.

    Attributes:
        steps: over all modes.
        names: of parameters or modules, in order of first appearance.
        shapes: of each, where known.
        values: statistic -> float64 of shape (names, steps), NaN where a step does not have it.
    """

    steps: Steps
    names: list[str] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    values: dict[str, Floats] = field(default_factory=dict)

    def __getitem__(self, statistic: str) -> Floats:
        """Of shape (names, steps); all NaN where none was saved."""
        empty = np.full((len(self.names), len(self.steps)), np.nan)
        return self.values.get(statistic, empty)


class Reader:
    """The saved steps of a run as they were when it was made, of the lowest rank that has them.

    Args:
        path: folder or fsspec URL.
    """

    def __init__(self, path: str) -> None:
        run = Run.existing(path)
        self._blocks = Blocks(run.fs, f"{run.path}/debug", run.local)
        self.index = Index(run.fs, f"{run.path}/debug", run.local)
        self.index.refresh(now=True)
        self._cells: dict[
            tuple[Layout, str, str], tuple[list[str], NDArray[np.int64], list[tuple[int, ...]]]
        ] = {}
        self._having: dict[tuple[Layout, str, tuple[str, ...]], bool] = {}

    def steps(self, mode: str = "train") -> list[int]:
        """Of a mode, counted over all modes."""
        return sorted(self.index.modes.get(mode, {}).values())

    def block(self, step: int) -> Block:
        ranks = self.index.blocks[step]
        return ranks[min(ranks)]

    def last_steps(self) -> dict[int, int]:
        """Rank -> the last step that it saved."""
        found: dict[int, int] = {}
        for step, ranks in self.index.blocks.items():
            for rank in ranks:
                found[rank] = max(step, found.get(rank, -1))
        return dict(sorted(found.items()))

    def tables(
        self, kinds: Mapping[str, Sequence[str]], most: int = MOST, mode: str = "train"
    ) -> dict[str, Table]:
        """Statistics by kind: ``weight``, ``gradient``, ``update``, ``input`` or ``output``.

        Args:
            kinds: kind -> statistics.
            most: steps of each kind that are read.
        """
        chosen = {
            kind: spread([step for step in self.steps(mode) if self._has(step, kind, names)], most)
            for kind, names in kinds.items()
        }
        found = {kind: Table(np.array(steps, np.int64)) for kind, steps in chosen.items()}
        places = {kind: {step: place for place, step in enumerate(steps)} for kind, steps in chosen.items()}
        rows: dict[str, dict[str, int]] = {kind: {} for kind in kinds}
        for step in sorted(set().union(*chosen.values())):
            block = self.block(step)
            try:
                numbers = self._numbers(block)
            except StateError:
                continue  # lost bytes leave a gap; `loopwise debug verify` names them
            for kind, statistics in kinds.items():
                if step in places[kind]:
                    for statistic in statistics:
                        self._put(
                            found[kind], rows[kind], places[kind][step], block, numbers, kind, statistic
                        )
        return found

    def _has(self, step: int, kind: str, statistics: Sequence[str]) -> bool:
        layout = self.block(step).layout
        key = (layout, kind, tuple(statistics))
        if key not in self._having:
            self._having[key] = any(self._where(layout, kind, each)[0] for each in statistics)
        return self._having[key]

    def _where(
        self, layout: Layout, kind: str, statistic: str
    ) -> tuple[list[str], NDArray[np.int64], list[tuple[int, ...]]]:
        """Names, where their numbers stand in what ``_numbers`` gives, and shapes."""
        key = (layout, kind, statistic)
        if key not in self._cells:
            cells = layout.cells(kind, (statistic,))
            self._cells[key] = (list(cells.names), cells.places[0], list(cells.shapes))
        return self._cells[key]

    def _numbers(self, block: Block) -> Floats:
        """All numbers of a block's tables, one after the other."""
        return block.layout.numbers(lambda offset, length: self._blocks.read(block, offset, length))

    def _put(
        self,
        table: Table,
        rows: dict[str, int],
        place: int,
        block: Block,
        numbers: Floats,
        kind: str,
        statistic: str,
    ) -> None:
        names, cells, shapes = self._where(block.layout, kind, statistic)
        if not names:
            return
        for name, shape in zip(names, shapes, strict=True):
            if name not in rows:
                rows[name] = len(table.names)
                table.names.append(name)
                table.shapes.append(shape)
        values = table.values.setdefault(statistic, np.empty((0, len(table.steps))))
        if len(values) < len(table.names):
            more = np.full((len(table.names) - len(values), len(table.steps)), np.nan)
            values = table.values[statistic] = np.concatenate((values, more))
        values[[rows[name] for name in names], place] = numbers[cells]
