"""The index files of a run's ranks, read again and again while they grow.

``loopwise.debug.store.segments`` specifies the format.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from loopwise.errors import StateError
from loopwise.run import listed

RACY = 2.0
"""Seconds: a folder changed less than this before it was listed is listed again, for its clock is coarse."""
POLL = 1.0
"""Seconds between two listings of remote storage."""
NUMBERED = re.compile(r"index\.rank(\d+)\.(\d+)\.jsonl")


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in the blocks of a layout."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the block."""
    length: int
    """Bytes."""
    whole: tuple[int, ...] = ()
    """Of a shard, the shape of the tensor that it belongs to."""
    start: tuple[int, ...] | None = None
    """Of a shard, its first element in it."""


class Layout:
    """What the blocks of one layout hold; its tables of names are made when first asked for.

    Args:
        groups: see the format.

    Raises:
        KeyError, TypeError, AttributeError: it is not of that form.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        for group in groups:
            columns, offset = (group["columns"], group["offset"]) if "rows" in group else ((), 0)
            texts = [group["collection"], *_names(group), *columns]
            if not all([type(text) is str for text in texts]) or type(offset) is not int or offset < 0:
                raise TypeError
        self.groups = groups

    @cached_property
    def tensors(self) -> dict[str, list[Any]]:
        """Name -> entry of a tensor that was saved itself."""
        found: dict[str, list[Any]] = {}
        for group in self.groups:
            for entry in group.get("tensors", ()):
                found.setdefault(entry[0], entry)
        return found

    @cached_property
    def rows(self) -> dict[str, list[tuple[int, int]]]:
        """Name -> group and row of the tables that describe it."""
        found: dict[str, list[tuple[int, int]]] = {}
        for number, group in enumerate(self.groups):
            for row, name in enumerate(group.get("rows", ())):
                found.setdefault(name, []).append((number, row))
        return found

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or name in self.rows

    def names(self, collection: str | None = None) -> Iterator[str]:
        """Names in their order, some of them perhaps twice."""
        for group in self.groups:
            if collection in (None, group["collection"]):
                yield from _names(group)

    def tensor(self, name: str) -> Entry | None:
        """Where a tensor is that was saved itself.

        Raises:
            StateError: what the index says of it cannot be.
        """
        if name not in self.tensors:
            return None
        entry = self.tensors[name]
        try:
            dtype, shape, length = dtype_of(entry[1]), tuple(entry[2]), entry[4]
            whole_numbers = all(type(number) is int for number in (*shape, entry[3], length))
            if not whole_numbers or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != length:
                raise ValueError
            if len(entry) == 5:
                return Entry(name, dtype, shape, entry[3], length)
            whole, start = tuple(entry[5]["shape"]), tuple(entry[5]["start"])
            if len(whole) != len(shape) or len(start) != len(shape):
                raise ValueError
            ends = [first + size for first, size in zip(start, shape, strict=True)]
            if any(first < 0 or end > size for first, end, size in zip(start, ends, whole, strict=True)):
                raise ValueError
            return Entry(name, dtype, shape, entry[3], length, whole, start)
        except (ValueError, KeyError, TypeError):
            raise _damaged(entry) from None

    def cells(self, name: str) -> dict[str, int]:
        """Statistic -> where its float64 stands, in bytes from the start of the block."""
        found: dict[str, int] = {}
        for number, row in self.rows.get(name, ()):
            group = self.groups[number]
            start = group["offset"] + 8 * row * len(group["columns"])
            for place, column in enumerate(group["columns"]):
                found.setdefault(column, start + 8 * place)
        return found

    def described(self, name: str) -> tuple[torch.dtype, tuple[int, ...]] | None:
        """Dtype and shape of a tensor that tables describe, where they say it."""
        for number, row in self.rows.get(name, ()):
            group = self.groups[number]
            if group["columns"] == ["value"]:
                return torch.float64, ()
            if "of" in group:
                try:
                    return dtype_of(group["of"][row][0]), tuple(group["of"][row][1])
                except (ValueError, LookupError, TypeError):
                    raise _damaged(group["of"]) from None
        return None

    @cached_property
    def extent(self) -> int:
        """Bytes that a block must have at least."""
        ends = [0]
        for group in self.groups:
            if "rows" in group:
                ends.append(group["offset"] + 8 * len(group["rows"]) * len(group["columns"]))
            else:
                ends += [entry[3] + entry[4] for entry in group["tensors"]]
        return max(ends)


@dataclass(frozen=True, slots=True)
class Block:
    """What one rank saved of one step, and where."""

    step: int
    mode: str
    mode_step: int
    time: float
    rank: int
    segment: int
    offset: int
    length: int
    crc32: int
    marks: dict[str, Any]
    layout: Layout


class Index:
    """The blocks of all ranks, as far as ``refresh`` has read.

    Args:
        fs: the fsspec file system.
        folder: the folder ``debug`` of a run; it may not be there yet.
        local: whether files there can grow.
    """

    def __init__(self, fs: Any, folder: str, local: bool) -> None:
        self._fs, self._folder, self._local = fs, folder, local
        self._ranks: dict[int, _Rank] = {}
        self._files: dict[int, list[int]] = {}
        self._listed, self._changed = float("-inf"), 0.0
        self.blocks: dict[int, dict[int, Block]] = {}
        """Step -> rank -> block."""
        self.modes: dict[str, dict[int, int]] = {}
        """Mode -> step of the mode -> step."""
        self.events: list[dict[str, Any]] = []
        """In the order of reading, each with its ``rank``."""
        self.torn = 0
        """Records that are lost: not ended, damaged, or of a lost layout."""
        self.version = 0
        """Counts the blocks read, so that what is derived from them can be kept until there are more."""

    @property
    def ranks(self) -> list[int]:
        return sorted(self._ranks)

    def refresh(self, now: bool = False) -> None:
        """Read what is new.  On remote storage at most every ``POLL`` seconds, unless ``now``."""
        self._list(now)
        for rank, numbers in sorted(self._files.items()):
            state = self._ranks.setdefault(rank, _Rank(numbers[0]))
            for number in numbers[numbers.index(state.number) :]:
                if number != state.number:
                    state.number, state.offset = number, 0
                self._read(rank, state, final=number != numbers[-1])

    def _list(self, now: bool) -> None:
        """Note the index files that are there."""
        if self._local:
            try:
                changed, when = os.stat(self._folder).st_mtime, time.time()
                if changed == self._changed and self._listed - changed > RACY:
                    return
                names = os.listdir(self._folder)
            except FileNotFoundError:
                return
            self._changed, self._listed = changed, when
        else:
            if not now and time.monotonic() - self._listed < POLL:
                return
            self._listed = time.monotonic()
            names = [file.rsplit("/", 1)[-1] for file in listed(self._fs, self._folder)]
        for match in filter(None, map(NUMBERED.fullmatch, names)):
            numbers = self._files.setdefault(int(match[1]), [])
            if int(match[2]) not in numbers:
                numbers.append(int(match[2]))
        for numbers in self._files.values():
            numbers.sort()

    def _read(self, rank: int, state: _Rank, final: bool) -> None:
        """The new lines of one file; a tail without its newline waits for it, or is lost if ``final``."""
        file = f"{self._folder}/index.rank{rank}.{state.number}.jsonl"
        data = self._new(file, state)
        if not data:
            return
        *lines, tail = data.split(b"\n")
        state.offset += len(data) - len(tail)
        for line in lines:
            self._take(rank, state, line)
        if tail and (final or not self._local):
            state.offset += len(tail)
            self.torn += 1

    def _new(self, file: str, state: _Rank) -> bytes:
        try:
            if not self._local:  # an object is whole, and never grows
                return b"" if state.offset else bytes(self._fs.cat_file(file))
            if os.stat(file).st_size <= state.offset:
                return b""
            with open(file, "rb") as opened:
                opened.seek(state.offset)
                return opened.read()
        except FileNotFoundError:
            return b""

    def _take(self, rank: int, state: _Rank, line: bytes) -> None:
        """One record."""
        try:
            record = json.loads(line)
            if "event" in record:
                self.events.append({**record, "rank": rank})
            elif "step" in record:
                self._put(_block(record, rank, state.layouts[record["layout"]]))
            else:
                state.layouts[record["layout"]] = Layout(record["groups"])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            self.torn += 1
            if not line.startswith((b'{"step"', b'{"event"')):
                state.layouts.clear()  # it may have replaced one of them, and later steps mean that one

    def _put(self, block: Block) -> None:
        ranks = self.blocks.setdefault(block.step, {})
        old = ranks.get(block.rank)
        if old and self.modes[old.mode].get(old.mode_step) == block.step:
            del self.modes[old.mode][old.mode_step]
        ranks[block.rank] = block
        self.modes.setdefault(block.mode, {})[block.mode_step] = block.step
        self.version += 1


class _Rank:
    """How far the files of a rank were read."""

    def __init__(self, number: int) -> None:
        self.number, self.offset = number, 0
        self.layouts: dict[int, Layout] = {}


def _names(group: dict[str, Any]) -> Iterable[Any]:
    return group["rows"] if "rows" in group else [entry[0] for entry in group["tensors"]]


def dtype_of(name: str) -> torch.dtype:
    """The dtype of torch's name.

    Raises:
        ValueError: there is none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(name)
    return found


def _damaged(seen: Any) -> StateError:
    return StateError(
        f"the index speaks of {str(seen)[:100]}",
        "what loopwise.debug.store.segments writes",
        "a damaged index, or one of a newer version",
        "read other tensors; or update loopwise",
    )


def _block(record: dict[str, Any], rank: int, layout: Layout) -> Block:
    numbers = [record[key] for key in ("step", "mode_step", "segment", "offset", "length", "crc32")]
    if not all(type(number) is int and number >= 0 for number in numbers) or record["length"] < layout.extent:
        raise ValueError
    step, mode_step, segment, offset, length, crc32 = numbers
    mode, marks = str(record["mode"]), dict(record.get("marks") or {})
    return Block(
        step, mode, mode_step, float(record["time"]), rank, segment, offset, length, crc32, marks, layout
    )
