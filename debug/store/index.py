"""Reader of the index files of a run's ranks, which may still grow.

``loopwise.debug.store.segments`` specifies their format.
"""

from __future__ import annotations

import io
import json
import os
import re
import time
from dataclasses import dataclass
from typing import Any

from loopwise.run import Run
from loopwise.storage.files import listed, open_regular
from loopwise.storage.json_lines import DAMAGED, count, texts

from .extents import Extents
from .layout import LARGEST, Layout

RACY = 2.0
"""Seconds; a folder that changed less than this before it was listed is listed again, as its clock is coarse."""
POLL = 1.0
"""Seconds between two listings of remote storage."""
MODE = re.compile(r"\w{1,50}")
"""Names of modes, which are also names of folders in exports."""
NUMBERED = re.compile(r"index\.rank(\d{1,9})\.(\d{1,9})\.jsonl")


@dataclass(frozen=True, slots=True)
class Block:
    """Record of the bytes that one rank saved of one step."""

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
    """Blocks of all ranks, as far as ``refresh`` has read.

    Args:
        fs: the fsspec file system.
        folder: the folder ``debug`` of a run; it need not exist yet.
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
        """Events in the order of reading, each with its ``rank``."""
        self.torn = 0
        """Lost records: cut off, damaged, or of a lost layout."""
        self.version = 0
        """Number of blocks read; results that were derived at another version are incomplete."""

    @property
    def ranks(self) -> list[int]:
        """Ranks that have an index file."""
        return sorted(self._ranks)

    def refresh(self, now: bool = False) -> None:
        """Read new records; on remote storage no more often than every ``POLL`` seconds, unless ``now`` is true."""
        self._list(now)
        for rank, numbers in sorted(self._files.items()):
            state = self._ranks.setdefault(rank, _Rank(numbers[0]))
            for number in numbers[numbers.index(state.number) :]:
                if number != state.number:
                    state.number, state.offset = number, 0
                self._read(rank, state, final=number != numbers[-1])

    def _list(self, now: bool) -> None:
        """Note the index files that exist."""
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
        """Read the new lines of one file; a tail without a newline is read later, or counted as lost if ``final``."""
        file = f"{self._folder}/index.rank{rank}.{state.number}.jsonl"
        data = self._new_bytes(file, state)
        if not data:
            return
        for line in io.BytesIO(data):
            if line.endswith(b"\n"):
                self._add(rank, state, line)
            elif final or not self._local:
                self.torn += 1
            else:
                return  # the rest of the line is still being written
            state.offset += len(line)

    def _new_bytes(self, file: str, state: _Rank) -> bytes:
        try:
            if not self._local:  # an object is complete, and never grows
                return b"" if state.offset else bytes(self._fs.cat_file(file))
            if os.stat(file).st_size <= state.offset:
                return b""
            with open_regular(file) as opened:
                opened.seek(state.offset)
                return opened.read()
        except FileNotFoundError:
            return b""

    def _add(self, rank: int, state: _Rank, line: bytes) -> None:
        """Add one record."""
        try:
            record = json.loads(line)
            if "restart" in record:
                self._restart(rank, count(record["restart"]))
            elif "event" in record:
                texts([record["event"]])
                count(record.get("step", 0), -1)
                self.events.append({**record, "rank": rank})
            elif "step" in record:
                block = _block(record, rank, state.layouts[record["layout"]])
                extents = state.extents.setdefault(block.segment, Extents())
                if not extents.take(block.offset, block.length, block.step):
                    raise ValueError("two blocks share bytes")
                self._add_block(block)
            else:
                state.layouts[count(record["layout"])] = Layout(record["groups"])
        except DAMAGED:
            self.torn += 1
            if not line.startswith((b'{"step"', b'{"event"', b'{"restart"')):
                state.layouts.clear()  # the record may have replaced a layout that later steps refer to

    def _restart(self, rank: int, first: int) -> None:
        """Remove the blocks of a rank from a step on: training went back to it, and they are no part of its history."""
        for step in [step for step, ranks in self.blocks.items() if step >= first and rank in ranks]:
            block = self.blocks[step].pop(rank)
            if self.blocks[step]:
                continue
            del self.blocks[step]
            if self.modes[block.mode].get(block.mode_step) == step:
                del self.modes[block.mode][block.mode_step]
        self.version += 1

    def counters(self) -> dict[str, Any]:
        """Return the number of the step after the last block, and its number by mode, as ``Clock.state_dict`` has them."""
        steps = {mode: max(numbers, default=-1) + 1 for mode, numbers in self.modes.items()}
        return {"step": max(self.blocks, default=-1) + 1, "steps": steps}

    def _add_block(self, block: Block) -> None:
        ranks = self.blocks.setdefault(block.step, {})
        old = ranks.get(block.rank)
        if old and self.modes[old.mode].get(old.mode_step) == block.step:
            del self.modes[old.mode][old.mode_step]
        ranks[block.rank] = block
        self.modes.setdefault(block.mode, {})[block.mode_step] = block.step
        self.version += 1


class _Rank:
    """Position up to which the files of a rank were read."""

    def __init__(self, number: int) -> None:
        self.number, self.offset = number, 0
        self.layouts: dict[int, Layout] = {}
        self.extents: dict[int, Extents] = {}
        """Key: number of a segment."""


def _block(record: dict[str, Any], rank: int, layout: Layout) -> Block:
    """Return the block of a record; raise one of ``DAMAGED`` if the record is not of the specified form."""
    keys = ("step", "mode_step", "segment", "offset", "length", "crc32")
    numbers: dict[str, int] = {key: count(record[key], below=LARGEST) for key in keys}
    if numbers["length"] < layout.extent or not MODE.fullmatch(record["mode"]):
        raise ValueError
    when, marks = float(record["time"]), _marks(record.get("marks") or {})
    return Block(mode=record["mode"], time=when, rank=rank, marks=marks, layout=layout, **numbers)


def _marks(marks: Any) -> dict[str, Any]:
    """Return the marks of a record; raise an error if those that the history of rules joins are of another form."""
    facts = marks.get("facts", {})
    for named, kind in (
        (marks.get("modules", {}), str),
        (marks.get("lines", {}), str),
        (facts.get("classes", {}), int),
    ):
        if not isinstance(named, dict) or not all([type(value) is kind for value in named.values()]):
            raise TypeError
    for name in ("optimizers", "samples"):
        count(marks.get(name, 1))
    return dict(marks)


def last_counters(run: Run) -> dict[str, Any]:
    """Return the counters of the step after the last one that was saved into a run."""
    index = Index(run.fs, f"{run.path}/debug", run.local)
    index.refresh(now=True)
    return index.counters()
