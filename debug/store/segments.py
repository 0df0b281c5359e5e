"""The tensors of a run on disk: segments of bytes, and an index of JSON lines that says what is in them.

Format, version 1, in the folder ``debug`` of a run (``loopwise.run`` says what a run folder is):

``tensors.rank<r>.<k>.seg``
    Blocks one after the other; before one of 1 MiB or more there are zeros up to a multiple of 4,096 bytes, as
    disks like it, and nothing between others.  A block is what one rank saved of one step:
    tensors and tables, each beginning at a multiple of 64 bytes from the start of the block, C order,
    little endian.  ``k`` counts the segments of a rank from 0; a segment is never written to again
    once there is one with a higher number.
``index.rank<r>.<n>.jsonl``
    Of the following records, in the order of writing.  A block exists when its ``step`` record does:
    the record is written after the block.

    ``{"layout": 0, "groups": [...]}``
        What a block holds; blocks of equal layout refer to one record, which stands before them, in this
        file or in one with a smaller number.  A later record of the same number replaces it from there on
        (a resumed run counts layouts from 0 again).  A group is what one collection saved:
        ``{"collection": "weights", "tensors": [[name, dtype, shape, offset, length], ...]}`` with torch's
        name of the dtype (``float32``), offset and length in bytes from the start of the block, and for a
        shard of a larger tensor a sixth entry ``{"shape": [...], "start": [...]}``: the shape of the
        whole and the shard's first element in it; or
        ``{"collection": "weights", "rows": [name, ...], "columns": [statistic, ...], "offset": 0}``: a table of
        float64, a row a tensor (of scalars: one column, ``value``), and optionally ``"of": [[dtype, shape], ...]``:
        dtype and shape of the tensors that the rows describe.
    ``{"step": 40, "mode": "train", "mode_step": 40, "time": 1.7e9, "layout": 0, "segment": 0, "offset": 0,
    "length": 4096, "crc32": 7, "marks": {}}``
        A block: steps over all modes and of this mode from 0, seconds since the epoch, its place, and the
        CRC-32 of its bytes.  ``marks`` holds remarks such as ``{"skipped": ["optimizer"]}``.
        Of several records of one step the last one holds (a resumed run repeats steps).
    ``{"event": "...", "step": 40}``
        Something to know: saves that were dropped, thinned or failed, collections that were switched off.

On storage that is not local, segments and their records are written in a folder of this machine, where
they have the same names and form, and sent when the segment is full or old: first the segment, then a
file of index records that has its number, and the layouts in it that it refers to.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from loopwise.ranks import rank
from loopwise.run import Run, encode, listed

from .append_file import Growing
from .checksum import Checksum
from .uploader import Sender

ALIGNMENT = 64
"""Bytes; a cache line, and enough for every dtype."""
FULL = 256 * 2**20
"""Bytes after which a segment is closed."""
OLD = 30.0
"""Seconds after which a segment bound for remote storage is closed, so that readers there see it."""
LAYOUTS = 1024
"""Layouts that are remembered; then they are counted from 0 again."""


class Segments:
    """Writes blocks and their records.  Not for several threads at once.

    Args:
        run: the run's folder.
        full: bytes after which a segment is closed.
        old: seconds after which a remote segment is.
        tell: called with what goes wrong where remote storage is at fault, perhaps from another thread,
            and with the step that is lost by it, or -1.
    """

    def __init__(
        self, run: Run, full: int = FULL, old: float = OLD, tell: Callable[[str, int], None] | None = None
    ) -> None:
        self._run, self._full, self._old, self._rank = run, full, old, rank()
        self._folder = f"{run.path}/debug"
        run.fs.makedirs(self._folder, exist_ok=True)
        self._number = max(self._taken(), default=-1)
        self._sender: Sender | None = None
        if not run.local:
            self._sender = Sender(run.fs, self._folder, tell or _silent)
            self._folder = self._sender.folder
        self._segment: Growing | None = None
        self._index: Growing | None = None
        self._since, self._steps = 0.0, list[int]()
        self._layouts: dict[Hashable, int] = {}
        self._checksum = Checksum()

    def knows(self, layout: Hashable) -> bool:
        """Whether a block of this layout was written before, so that its groups are not needed again."""
        return layout in self._layouts

    def write(
        self, layout: Hashable, groups: Sequence[Any], chunks: Sequence[Any], record: dict[str, Any]
    ) -> None:
        """Commit one block.

        Args:
            layout: equal for equal ``groups``.
            groups: see the format; of no account where the layout is known.
            chunks: buffers of bytes which, joined, are the block.
            record: ``step``, ``mode``, ``mode_step``, ``time`` and ``marks``.

        Raises:
            OSError: the block is not there; those before it are.
        """
        segment = self._segment or self._open()
        try:
            self._write(segment, layout, groups, chunks, record)
        except BaseException:
            self._close()
            raise
        if segment.size >= self._full or self.patience == 0.0:
            self._close()

    def event(self, text: str, step: int) -> None:
        """Note something."""
        if self._sender and not self._segment:
            self._open()
        try:
            self._record({"event": text, "step": step})
        except BaseException:
            self._close()
            raise

    @property
    def patience(self) -> float | None:
        """Seconds until ``rest`` is to be called; ``None`` for any time."""
        if self._sender is None or self._segment is None:
            return None
        return max(0.0, self._since + self._old - time.monotonic())

    def rest(self) -> None:
        """Close a segment that is old enough to be sent."""
        if self.patience == 0.0:
            self._close()

    def close(self) -> None:
        """Commit what is pending.

        Raises:
            OSError: remote storage is down; what it lacks stays on this machine.
        """
        try:
            self._close()
        finally:
            self._checksum.close()
            if self._sender is not None:
                self._sender.close()

    def _write(
        self,
        segment: Growing,
        layout: Hashable,
        groups: Sequence[Any],
        chunks: Sequence[Any],
        record: dict[str, Any],
    ) -> None:
        os.stat(segment.path)  # one that was deleted would take bytes as before
        length = sum(len(chunk) for chunk in chunks)
        segment.align(length)
        crc32 = self._checksum.begin(chunks)
        try:
            segment.append(chunks)
        finally:
            crc = crc32()
        if layout not in self._layouts:
            if len(self._layouts) >= LAYOUTS:
                self._layouts.clear()
            number = len(self._layouts)
            self._record({"layout": number, "groups": list(groups)})
            self._layouts[layout] = number
        place = {"layout": self._layouts[layout], "segment": self._number, "offset": segment.size}
        self._record({**record, **place, "length": length, "crc32": crc})
        segment.commit()
        if self._sender is not None:
            self._steps.append(record["step"])

    def _record(self, record: dict[str, Any]) -> None:
        if self._index is None:
            self._run.append("debug", "index", record)
        else:
            self._index.append([encode(record)])
            self._index.commit()

    def _open(self) -> Growing:
        number = self._number + 1
        self._segment = Growing(f"{self._folder}/tensors.rank{self._rank}.{number}.seg")
        self._number, self._since = number, time.monotonic()
        if self._sender is not None:
            self._index = Growing(f"{self._folder}/index.rank{self._rank}.{number}.jsonl")
        return self._segment

    def _close(self) -> None:
        """End the segment; nothing torn stays in it, and no file if nothing is in it."""
        if self._segment is None:
            return
        files = [self._segment, *([self._index] if self._index else [])]
        self._segment = self._index = None
        for file in files:
            file.close()
        steps, self._steps = self._steps, []
        found = [file.path for file in files if file.size]
        if not found:
            self._number -= 1
        elif self._sender is not None:
            self._layouts.clear()  # what is sent together can be read without the rest
            self._sender.add(found, steps)

    def _taken(self) -> list[int]:
        """Numbers of files that are there from before."""
        kinds = "tensors" if self._run.local else "tensors|index"
        names = [file.rsplit("/", 1)[-1] for file in listed(self._run.fs, self._folder)]
        pattern = re.compile(rf"(?:{kinds})\.rank{self._rank}\.(\d+)\.(?:seg|jsonl)")
        return [int(match[1]) for match in map(pattern.fullmatch, names) if match]


def _silent(text: str, step: int) -> None:
    pass
