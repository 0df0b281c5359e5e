"""The tensors of a run on disk: segments of bytes, and an index of JSON lines that describes them.

Format, version 1, in the folder ``debug`` of a run (``loopwise.run`` specifies the run folder):

``tensors.rank<r>.<k>.seg``
    Blocks, one after the other.  A block is all that one rank saved of one step: tensors and tables in C order
    and little endian, each at a multiple of 64 bytes from the start of the block.  Zeros fill the file up to a
    multiple of 4,096 bytes before a block of 1 MiB or more, so that it can be written past the page cache;
    other blocks follow each other without a gap.  ``k`` counts the segments of a rank from 0.  A segment is
    never written to again once a segment with a higher number exists.
``index.rank<r>.<n>.jsonl``
    JSON lines of four kinds, in the order of writing.

    ``{"layout": 0, "groups": [...]}``
        Content of a block.  Blocks with equal content share one record.  The record stands before them, in
        this file or in one with a smaller number.  A later record with the same number replaces it from there
        on (a resumed run counts layouts from 0 again).  A group is what one collection saved, either tensors,
        ``{"collection": "weights", "tensors": [[name, dtype, shape, offset, length], ...]}``, or a table of
        their statistics, ``{"collection": "weights", "rows": [name, ...], "columns": [statistic, ...],
        "offset": 0}``.  Dtypes have torch's names (``float32``); offsets and lengths are bytes, offsets from
        the start of the block.  A shard of a larger tensor has a sixth entry, ``{"shape": [...], "start":
        [...]}``: the shape of the whole tensor, and the index of the shard's first element in it.  A table
        holds float64 numbers, one row for each name; scalars have the single column ``value``.  A table may
        have ``"of": [[dtype, shape], ...]``: dtype and shape of the tensor that each row describes.
    ``{"step": 40, "mode": "train", "mode_step": 40, "time": 1.7e9, "layout": 0, "segment": 0, "offset": 0,
    "length": 4096, "crc32": 7, "marks": {}}``
        Place of a block in a segment: ``offset``, ``length`` and the CRC-32 of its bytes.  ``step`` counts from
        0 over all modes, ``mode_step`` within the mode; ``time`` is in seconds since the epoch.  ``marks``
        holds remarks such as ``{"skipped": ["optimizer"]}``.  A block exists if this record does: the record
        is written after the block.  The last of several records of one step counts (a resumed run may repeat
        steps).
    ``{"event": "...", "step": 40}``
        Message for the reader: saves that were dropped, thinned out or failed, collections that were switched
        off.  A kind of message is written once, with the first step that it is about.
    ``{"restart": 40}``
        Training went back to a checkpoint: the records before of this step and later ones, of this rank, do not count.

If the run's storage is not local, segments and their records are first written into a folder of this machine,
with the same names and form.  They are sent when the segment is full or old: first the segment, then an index
file with the segment's number, which repeats the layouts that its records refer to.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from loopwise.ranks import rank
from loopwise.run import Run, encode, listed

from ..statistics.native import crc32
from .append_file import AppendFile
from .checksum import Checksum
from .group import Group
from .layout import Layout
from .uploader import Uploader

FULL = 256 * 2**20
"""Bytes from which on a segment is closed."""
OLD = 30.0
"""Seconds from which on a segment bound for remote storage is closed, so that readers there see it."""
LAYOUTS = 1024
"""Layouts that are remembered; after as many they are counted from 0 again."""


class Segments:
    """Writer of blocks and their records, for one thread at a time.

    Args:
        run: the run.
        full: bytes from which on a segment is closed.
        old: seconds from which on a segment bound for remote storage is closed.
        tell: called with a text about each problem with remote storage, and the step that is lost by it, or -1;
            perhaps from another thread.
    """

    def __init__(
        self, run: Run, full: int = FULL, old: float = OLD, tell: Callable[[str, int], None] | None = None
    ) -> None:
        self._run, self._full, self._old, self._rank = run, full, old, rank()
        self._folder, self._tell = f"{run.path}/debug", tell or (lambda text, step: None)
        run.fs.makedirs(self._folder, exist_ok=True)
        self._number = max(self._numbers(), default=-1)
        self._uploader: Uploader | None = None
        if not run.local:
            self._uploader = Uploader(run.fs, self._folder, self._tell)
            self._folder = self._uploader.folder
        self._segment: AppendFile | None = None
        self._index: AppendFile | None = None
        self._since, self._steps = 0.0, list[int]()
        self._layouts: dict[tuple[Group, ...], tuple[int, Layout]] = {}
        self._checksum = Checksum()

    def write(self, groups: Sequence[Group], chunks: Sequence[Any], record: dict[str, Any]) -> Layout:
        """Commit one block.

        Args:
            groups: content of the block.
            chunks: buffers of bytes which, joined, are the block.
            record: ``step``, ``mode``, ``mode_step``, ``time`` and ``marks``.

        Returns:
            The layout of the block, the same object for equal groups, so that its tables of names are made once.

        Raises:
            OSError: the block was not written; the blocks before it were.
        """
        segment = self._present_segment()
        try:
            layout = self._write(segment, tuple(groups), chunks, record)
        except BaseException:
            self._layouts.clear()  # the record of a new one may be lost
            self._close()
            raise
        if segment.size >= self._full or self.patience == 0.0:
            self._close()
        return layout

    def write_scalars(self, steps: Sequence[tuple[Sequence[Group], bytes, dict[str, Any]]]) -> list[Layout]:
        """Commit blocks that hold scalars alone, by one write for the blocks and one for their records.

        Args:
            steps: content, bytes and record of each block.

        Returns:
            The layouts of the blocks.

        Raises:
            OSError: the blocks were not written; the blocks before them were.
        """
        segment, records, layouts = self._present_segment(), [], []
        try:
            offset = segment.size
            segment.append([b"".join(block for _, block, _ in steps)])
            for groups, block, record in steps:
                number, layout, new = self._layout_of(tuple(groups))
                records += new
                place = {"layout": number, "segment": self._number, "offset": offset}
                records.append({**record, **place, "length": len(block), "crc32": crc32(block, 0)})
                layouts.append(layout)
                offset += len(block)
            self._record(*records)
            segment.commit()
        except BaseException:
            self._layouts.clear()  # the record of a new one may be lost
            self._close()
            raise
        if self._uploader is not None:
            self._steps += [record["step"] for _, _, record in steps]
        if segment.size >= self._full or self.patience == 0.0:
            self._close()
        return layouts

    def event(self, text: str, step: int) -> None:
        """Commit a message to the reader."""
        if self._uploader and not self._segment:
            self._open()
        try:
            self._record({"event": text, "step": step})
        except BaseException:
            self._close()
            raise

    def restart(self, step: int) -> None:
        """Commit that what was written of this and later steps does not count any more."""
        if self._uploader and not self._segment:
            self._open()
        self._record({"restart": step})

    @property
    def patience(self) -> float | None:
        """Seconds until ``rest`` should be called; ``None`` if it need not be."""
        if self._uploader is None or self._segment is None:
            return None
        return max(0.0, self._since + self._old - time.monotonic())

    def rest(self) -> None:
        """Close the segment if it is old enough to be sent."""
        if self.patience == 0.0:
            self._close()

    def close(self) -> None:
        """Close the segment and send everything.

        Raises:
            OSError: remote storage is down; files that were not sent stay on this machine.
        """
        try:
            self._close()
        finally:
            self._checksum.close()
            if self._uploader is not None:
                self._uploader.close()

    def _write(
        self, segment: AppendFile, groups: tuple[Group, ...], chunks: Sequence[Any], record: dict[str, Any]
    ) -> Layout:
        length = sum(len(chunk) for chunk in chunks)
        segment.align(length)
        crc32 = self._checksum.begin(chunks)
        try:
            segment.append(chunks)
        finally:
            crc = crc32()
        number, layout, new = self._layout_of(groups)
        place = {"layout": number, "segment": self._number, "offset": segment.size}
        self._record(*new, {**record, **place, "length": length, "crc32": crc})
        segment.commit()
        if self._uploader is not None:
            self._steps.append(record["step"])
        return layout

    def _layout_of(self, groups: tuple[Group, ...]) -> tuple[int, Layout, list[dict[str, Any]]]:
        """Return number and layout of groups, and the layout's record if it is new."""
        new = []
        if groups not in self._layouts:
            if len(self._layouts) >= LAYOUTS:
                self._layouts.clear()
            number, layout = len(self._layouts), Layout([group.record() for group in groups])
            new.append({"layout": number, "groups": layout.groups})
            self._layouts[groups] = number, layout
        return *self._layouts[groups], new

    def _present_segment(self) -> AppendFile:
        """Return the open segment, or a new one if there is none or it was deleted: nobody could read its open file."""
        if self._segment is not None and not self._segment.exists():
            self._begin_again()
        return self._segment or self._open()

    def _begin_again(self) -> None:
        self._close()
        self._layouts.clear()
        os.makedirs(self._folder, exist_ok=True)
        self._tell(
            "the run's folder was deleted during training: it is written anew, and the steps before are lost",
            -1,
        )

    def _record(self, *records: dict[str, Any]) -> None:
        if self._index is None:
            self._run.append("debug", "index", *records)
        else:
            self._index.append([b"".join(map(encode, records))])
            self._index.commit()

    def _open(self) -> AppendFile:
        number = self._number + 1
        os.makedirs(self._folder, exist_ok=True)
        self._segment = AppendFile(f"{self._folder}/tensors.rank{self._rank}.{number}.seg")
        self._number, self._since = number, time.monotonic()
        if self._uploader is not None:
            self._index = AppendFile(f"{self._folder}/index.rank{self._rank}.{number}.jsonl")
        return self._segment

    def _close(self) -> None:
        """Close the segment and its index; an incomplete block is removed, and so is an empty file."""
        if self._segment is None:
            return
        files = [self._segment, *([self._index] if self._index else [])]
        self._segment = self._index = None
        for file in files:
            file.close()
        steps, self._steps = self._steps, []
        written = [file.path for file in files if file.size]
        if not written:
            self._number -= 1
        elif self._uploader is not None:
            self._layouts.clear()  # an index file that is sent can be read without the others
            self._uploader.add(written, steps)

    def _numbers(self) -> list[int]:
        """Return the numbers of files that exist already."""
        kinds = "tensors" if self._run.local else "tensors|index"
        names = [file.rsplit("/", 1)[-1] for file in listed(self._run.fs, self._folder)]
        pattern = re.compile(rf"(?:{kinds})\.rank{self._rank}\.(\d+)\.(?:seg|jsonl)")
        return [int(match[1]) for match in map(pattern.fullmatch, names) if match]
