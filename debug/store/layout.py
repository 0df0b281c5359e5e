"""Place of every tensor, table, row and column in a block; all that write or read blocks ask a ``Layout``.

``loopwise.debug.store.segments`` specifies the JSON form of a layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from loopwise.errors import StateError
from loopwise.storage.json_lines import count, texts

from .columns import Columns, Floats, kind_of
from .dtypes import DTYPES
from .group import Names

MOST_DIMENSIONS, LARGEST = 64, 2**58
"""Largest number of dimensions, and of elements, of a tensor."""
Read = Callable[[int, int], Any]
"""Function from an offset in the block and a length, both in bytes, to the bytes there."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor in the blocks of a layout."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the block."""
    length: int
    """Bytes."""
    whole: tuple[int, ...] = ()
    """Shape of the whole tensor, if this is a shard."""
    start: tuple[int, ...] | None = None
    """Index of the shard's first element in the whole tensor; ``None`` if this is no shard."""


class Cells(NamedTuple):
    """Places of statistics among the numbers of a block."""

    names: Names
    places: NDArray[np.int64]
    """Indices into ``Layout.numbers``, of shape (statistics, names)."""
    shapes: tuple[tuple[int, ...], ...]
    dtypes: Names


class Layout:
    """Content of the blocks that refer to one ``layout`` record; its tables of names are made on first use.

    Args:
        groups: entries of the groups in the index.

    Raises:
        KeyError, TypeError, ValueError: the groups are not of the specified form.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            (_validate_table if "rows" in group else _validate_tensors)(group)
        self.groups = groups
        self._cells: dict[tuple[str, Names], Cells] = {}

    @cached_property
    def is_of_scalars(self) -> bool:
        """True if the blocks hold scalars alone."""
        return all(group.get("columns") == ["value"] for group in self.groups)

    # -- by name --------------------------------------------------------------------------------

    @cached_property
    def tensors(self) -> dict[str, list[Any]]:
        """Key: name.  Value: entry in the index of a tensor that was saved itself."""
        tensors: dict[str, list[Any]] = {}
        for group in self.groups:
            for entry in group.get("tensors", ()):
                tensors.setdefault(entry[0], entry)
        return tensors

    @cached_property
    def rows(self) -> dict[str, list[tuple[int, int]]]:
        """Key: name.  Value: (key in ``tables``, row) of each table row about the tensor."""
        rows: dict[str, list[tuple[int, int]]] = {}
        for start, table in self.tables.items():
            for row, name in enumerate(table["rows"]):
                rows.setdefault(name, []).append((start, row))
        return rows

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.rows

    def names(self, collection: str | None = None) -> Iterator[str]:
        """Yield the names of all collections, or of one, in order; a name may be yielded twice."""
        for group in self.groups:
            if collection in (None, group["collection"]):
                yield from _names(group)

    def tensor(self, name: str) -> Entry | None:
        """Return the place of a tensor; ``None`` if only its statistics were saved, or nothing.

        Raises:
            StateError: the index contradicts itself about the tensor.
        """
        if name not in self.tensors:
            return None
        _, dtype_name, dimensions, offset, length, *shard = self.tensors[name]
        try:
            dtype, shape = DTYPES[dtype_name], _shape(dimensions)
            if math.prod(shape) * dtype.itemsize != count(length) or count(offset) + length > LARGEST:
                raise ValueError("the length does not fit the shape")
            if not shard:
                return Entry(name, dtype, shape, offset, length)
            whole, start = _shape(shard[0]["shape"]), _shape(shard[0]["start"])
            if any(first + size > end for first, size, end in zip(start, shape, whole, strict=True)):
                raise ValueError("the shard ends outside of its tensor")
            return Entry(name, dtype, shape, offset, length, whole, start)
        except (ValueError, LookupError, TypeError):
            raise _damaged(self.tensors[name]) from None

    def statistic_offsets(self, name: str) -> dict[str, int]:
        """Return statistic -> offset of its float64, in bytes from the start of the block."""
        offsets: dict[str, int] = {}
        for start, row in self.rows.get(name, ()):
            table = self.tables[start]
            for place, column in enumerate(table["columns"], row * len(table["columns"])):
                offsets.setdefault(column, table["offset"] + 8 * place)
        return offsets

    def described(self, name: str) -> tuple[torch.dtype, tuple[int, ...]] | None:
        """Return dtype and shape of a tensor from the tables; ``None`` if they were not saved.

        Raises:
            StateError: the index contradicts itself about the tensor.
        """
        try:
            dtype, shape = self._of(self.rows.get(name, ()))
            return (DTYPES[dtype], shape) if dtype else None
        except KeyError:
            raise _damaged(f"no valid dtype and shape of {name!r}") from None

    @cached_property
    def extent(self) -> int:
        """Smallest number of bytes of a block."""
        ends = [table["offset"] + 8 * _count(table) for table in self.tables.values()]
        ends += [entry[3] + entry[4] for group in self.groups for entry in group.get("tensors", ())]
        return max(ends, default=0)

    # -- by kind --------------------------------------------------------------------------------

    @cached_property
    def tables(self) -> dict[int, dict[str, Any]]:
        """Index of a table's first number in ``numbers`` -> the group; a table without rows has no numbers."""
        tables, start = {}, 0
        for group in self.groups:
            if "rows" in group:
                tables[start] = group
                start += _count(group)
        return tables

    def numbers(self, read: Read) -> Floats:
        """Return a copy of all numbers of a block's tables, joined to one array.

        Args:
            read: reads bytes of the block.
        """
        tables = self.tables.values()
        arrays = [np.frombuffer(read(table["offset"], 8 * _count(table)), "<f8") for table in tables]
        return np.concatenate([np.empty(0), *arrays])

    @cached_property
    def _rows_by_kind(self) -> dict[str, dict[str, list[tuple[int, int]]]]:
        """Table rows of each parameter or module, by kind; scalars are left out."""
        kinds: dict[str, dict[str, list[tuple[int, int]]]] = {}
        trained = {name.partition("/")[2] for name in self.rows if name.startswith(("gradient/", "update/"))}
        for name, rows in self.rows.items():
            kind, owner = ("weight", name) if name in trained else kind_of(name)
            statistics = [(start, row) for start, row in rows if self.tables[start]["columns"] != ["value"]]
            if statistics:
                kinds.setdefault(kind, {}).setdefault(owner, []).extend(statistics)
        return kinds

    def cells(self, kind: str, statistics: Names) -> Cells:
        """Return the places of statistics, for the tensors of a kind that have all of them.

        Args:
            kind: ``weight``, ``gradient``, ``update``, ``input`` or ``output``.
            statistics: names of statistics.
        """
        key = (kind, statistics)
        if key not in self._cells:
            rows = self._rows_by_kind.get(kind, {})
            places = {name: [self._place(own, of) for of in statistics] for name, own in rows.items()}
            names = tuple(name for name in rows if None not in places[name])
            by_name = np.array([places[name] for name in names], np.int64).reshape(
                len(names), len(statistics)
            )
            dtypes, shapes = (
                zip(*(self._of(rows[name]) for name in names), strict=True) if names else ((), ())
            )
            self._cells[key] = Cells(names, by_name.T, shapes, dtypes)
        return self._cells[key]

    def _place(self, rows: Sequence[tuple[int, int]], statistic: str) -> int | None:
        """Return the index in ``numbers`` of a statistic in the first row that has it."""
        for start, row in rows:
            columns = self.tables[start]["columns"]
            if statistic in columns:
                return start + row * len(columns) + int(columns.index(statistic))
        return None

    def _of(self, rows: Sequence[tuple[int, int]]) -> tuple[str, tuple[int, ...]]:
        """Return the name of the dtype and the shape that the first table with both has; an empty text if none has."""
        for start, row in rows:
            table = self.tables[start]
            if table["columns"] == ["value"]:
                return "float64", ()
            if "of" in table:
                dtype, shape = table["of"][row]
                return dtype, tuple(shape)
        return "", ()

    def columns(self, numbers: Floats, kind: str, statistics: Names) -> Columns:
        """Return statistics of the tensors of a kind.

        Args:
            numbers: as ``numbers`` gave them for the block.
            kind: see ``cells``.
            statistics: see ``cells``.
        """
        cells = self.cells(kind, statistics)
        return Columns(cells.names, tuple(numbers[cells.places]), cells.shapes, cells.dtypes)

    def column(self, numbers: Floats, column: str, collection: str | None = None) -> dict[str, float]:
        """Return one column of the tables of all collections or of one, by name; scalars are the column ``value``.

        Args:
            numbers: as ``numbers`` gave them for the block.
            column: statistic.
            collection: collection that owns the tables.
        """
        values: dict[str, float] = {}
        for start, table in self.tables.items():
            columns = table["columns"]
            if collection in (None, table["collection"]) and column in columns:
                first, stop = start + columns.index(column), start + _count(table)
                values |= zip(table["rows"], numbers[first : stop : len(columns)].tolist(), strict=True)
        return values


def _names(group: dict[str, Any]) -> Iterable[Any]:
    return group["rows"] if "rows" in group else [entry[0] for entry in group["tensors"]]


def _count(table: dict[str, Any]) -> int:
    return len(table["rows"]) * len(table["columns"])


def _validate_table(group: dict[str, Any]) -> None:
    """Raise a ``KeyError``, ``TypeError`` or ``ValueError`` if a group is no table."""
    rows = texts(group["rows"])
    texts(group["columns"])
    texts([group["collection"]])
    count(group["offset"])
    of = group.get("of", [["", []]] * len(rows))
    if len(of) != len(rows):
        raise ValueError("a table with a dtype and a shape of each row, or of none")
    for dtype, shape in of:
        texts([dtype])
        _shape(shape)


def _validate_tensors(group: dict[str, Any]) -> None:
    """Raise a ``KeyError``, ``TypeError`` or ``ValueError`` if a group holds no tensors; ``tensor`` checks the rest."""
    texts([group["collection"]])
    for name, dtype, _, _, _, *_ in group["tensors"]:
        texts([name, dtype])


def _shape(dimensions: Any) -> tuple[int, ...]:
    """Return a shape, or the start of a shard; raise an error if it is none, or one that no tensor can have."""
    shape = tuple([count(size) for size in dimensions])
    if len(shape) > MOST_DIMENSIONS or math.prod(max(size, 1) for size in shape) > LARGEST:
        raise ValueError("no tensor has this shape")
    return shape


def _damaged(record: Any) -> StateError:
    return StateError(
        f"the index has {str(record)[:100]}",
        "a record as loopwise.debug.store.segments specifies it",
        "a damaged index, or one of a newer version",
        "read other tensors; or update loopwise",
    )
