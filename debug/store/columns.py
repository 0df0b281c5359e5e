"""Statistics of saved steps as arrays over tensors."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .index import Layout

Floats = NDArray[np.float64]
_TAKEN = re.compile(r"^(?:(.*)\.)?(input|output)\.")


class Columns(NamedTuple):
    """Statistics of the tensors of a kind, of those that have all that were asked for."""

    names: tuple[str, ...]
    """Of parameters for ``weight``, ``gradient`` and ``update``; of modules for ``input`` and ``output``."""
    values: tuple[Floats, ...]
    """For each statistic an array over the names."""
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]


class _Where(NamedTuple):
    """Where statistics of some tensors stand: table, row, column."""

    names: tuple[str, ...]
    cells: tuple[tuple[tuple[int, int, int], ...], ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]


class View:
    """Where the statistics stand in blocks of one layout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.tables = [group for group in layout.groups if "rows" in group]
        self.scalars: list[tuple[str, int, int, str]] = []
        """Name, table, row, collection."""
        self._cells: dict[str, dict[str, dict[str, tuple[int, int, int]]]] = {}
        self._forms: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {}
        self._where: dict[tuple[str, tuple[str, ...]], _Where] = {}
        rows = [name for group in self.tables for name in group["rows"]]
        trained = {name.partition("/")[2] for name in rows if name.startswith(("gradient/", "update/"))}
        for number, group in enumerate(self.tables):
            for row, name in enumerate(group["rows"]):
                kind, of = ("weight", name) if name in trained else kind_of(name)
                if group["columns"] == ["value"]:
                    self.scalars.append((name, number, row, group["collection"]))
                    continue
                if "of" in group:
                    dtype, shape = group["of"][row]
                    self._forms.setdefault((kind, of), (dtype, tuple(shape)))
                cells = self._cells.setdefault(kind, {}).setdefault(of, {})
                for place, column in enumerate(group["columns"]):
                    cells.setdefault(column, (number, row, place))

    def where(self, kind: str, statistics: tuple[str, ...]) -> _Where:
        key = (kind, statistics)
        if key not in self._where:
            having = [
                (name, tuple(cells[each] for each in statistics))
                for name, cells in self._cells.get(kind, {}).items()
                if all(each in cells for each in statistics)
            ]
            names = tuple(name for name, _ in having)
            forms = [self._forms.get((kind, name), ("", ())) for name in names]
            by_statistic = tuple(zip(*(cells for _, cells in having), strict=True))
            shapes, dtypes = tuple(shape for _, shape in forms), tuple(dtype for dtype, _ in forms)
            self._where[key] = _Where(names, by_statistic, shapes, dtypes)
        return self._where[key]


def kind_of(name: str) -> tuple[str, str]:
    """Kind of a tensor by its name, and the parameter or module that it is of."""
    head, _, rest = name.partition("/")
    if rest:
        return head, rest
    taken = _TAKEN.match(name)
    return (taken[2], taken[1] or "") if taken else ("weight", name)
