"""Bytes of blocks, mapped into memory from local files, or read as ranges of remote objects."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from io import BufferedReader
from mmap import ACCESS_READ, mmap
from typing import Any

import torch

from loopwise.errors import StateError
from loopwise.storage.files import open_regular

from .index import Block
from .layout import Entry

SMALL = 2**17
"""Bytes; below, a copy is cheaper than a mapping (17 us and 22 us for 64 KiB, 34 us and 22 us for 256 KiB)."""
NUMBER = struct.Struct("<d")
PIECE = 2**22
"""Bytes read at a time when a block is verified."""


class Blocks:
    """Reader of parts of blocks.

    Args:
        fs: the fsspec file system.
        folder: the folder ``debug`` of a run.
        local: whether files can be opened by path.
    """

    def __init__(self, fs: Any, folder: str, local: bool) -> None:
        self._fs, self._folder, self._local = fs, folder, local

    def tensor(self, block: Block, entry: Entry) -> torch.Tensor:
        """Return the tensor of a layout's entry.

        On local storage tensors of ``SMALL`` bytes or more are not copied.  Their memory is private: writing
        into it changes neither the file nor later reads.

        Raises:
            StateError: the bytes are lost.
        """
        if not entry.length:
            return torch.empty(entry.shape, dtype=entry.dtype)
        start, end = self._range(block, entry.offset, entry.length)
        if self._local and entry.length >= SMALL and start % entry.dtype.itemsize == 0:
            self._open(block, end).close()
            try:
                mapped = torch.from_file(self._file(block), shared=False, size=end, dtype=torch.uint8)
                return mapped[start:].view(entry.dtype).view(entry.shape)
            except RuntimeError:  # the file was cut just now, or there is no more address space
                pass
        data = self.read(block, entry.offset, entry.length)
        return torch.frombuffer(data, dtype=entry.dtype).view(entry.shape)

    def read(self, block: Block, offset: int, length: int) -> bytearray:
        """Return a copy of some bytes of a block.

        Raises:
            StateError: the bytes are lost.
        """
        start, end = self._range(block, offset, length)
        if self._local:
            with self._open(block, end) as file:
                file.seek(start)
                data = bytearray(length)
                del data[file.readinto(data) :]
        else:
            try:
                data = bytearray(self._fs.cat_file(self._file(block), start=start, end=end))
            except FileNotFoundError:
                raise _lost(block, f"no file {self._file(block)}") from None
        if len(data) < length:
            raise _lost(block, f"{self._file(block)} ends {length - len(data)} bytes early")
        return data

    def number(self, block: Block, offset: int) -> float:
        """Return the float64 at an offset from the start of a block.

        Raises:
            StateError: the bytes are lost.
        """
        return float(NUMBER.unpack(self.read(block, offset, 8))[0])

    def numbers(self, cells: Sequence[tuple[Block, int]]) -> list[float | None]:
        """Return the float64 at each offset from the start of its block; ``None`` for lost bytes."""
        if not self._local:
            return self._remote_numbers(cells)
        numbers: list[float | None] = [None] * len(cells)
        files: dict[str, list[int]] = {}
        for place, (block, _) in enumerate(cells):
            files.setdefault(self._file(block), []).append(place)
        for file, places in files.items():
            try:
                with open_regular(file) as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
                    for place in places:
                        start = cells[place][0].offset + cells[place][1]
                        if start + 8 <= len(data):
                            numbers[place] = NUMBER.unpack_from(data, start)[0]
            except (FileNotFoundError, ValueError):  # ValueError: the file is empty
                continue
        return numbers

    def _remote_numbers(self, cells: Sequence[tuple[Block, int]]) -> list[float | None]:
        starts = [block.offset + offset for block, offset in cells]
        files = [self._file(block) for block, _ in cells]
        pieces = self._fs.cat_ranges(files, starts, [start + 8 for start in starts], on_error="return")
        for piece in pieces:
            if isinstance(piece, Exception) and not isinstance(piece, FileNotFoundError):
                raise piece  # storage that is down has lost nothing
        whole = (piece if isinstance(piece, bytes) and len(piece) == 8 else None for piece in pieces)
        return [None if piece is None else NUMBER.unpack(piece)[0] for piece in whole]

    def fault(self, block: Block) -> str | None:
        """Return a text about the damage of a block; ``None`` if its CRC-32 is right."""
        crc32 = 0
        try:
            for offset in range(0, block.length, PIECE):
                crc32 = zlib.crc32(self.read(block, offset, min(PIECE, block.length - offset)), crc32)
        except StateError as error:
            return str(error.args[0])
        return None if crc32 == block.crc32 else f"its CRC-32 is {crc32}, not {block.crc32}"

    def size(self) -> tuple[int, int]:
        """Return the number of files in the folder and their bytes."""
        try:
            sizes = [int(file["size"] or 0) for file in self._fs.ls(self._folder, detail=True)]
        except FileNotFoundError:
            return 0, 0
        return len(sizes), sum(sizes)

    def _range(self, block: Block, offset: int, length: int) -> tuple[int, int]:
        """Return start and end of bytes of a block in its segment."""
        if offset < 0 or offset + length > block.length:
            raise _lost(block, f"bytes {offset} to {offset + length} of a block of {block.length}")
        return block.offset + offset, block.offset + offset + length

    def _open(self, block: Block, end: int) -> BufferedReader:
        """Open the local segment of a block, whose length is compared before memory is taken for its bytes.

        Raises:
            StateError: the file is missing, or ends before ``end``.
        """
        try:
            file = open_regular(self._file(block))
        except FileNotFoundError:
            raise _lost(block, f"no file {self._file(block)}") from None
        size = os.fstat(file.fileno()).st_size
        if size < end:
            file.close()
            raise _lost(block, f"{self._file(block)} ends {end - size} bytes early")
        return file

    def _file(self, block: Block) -> str:
        return f"{self._folder}/tensors.rank{block.rank}.{block.segment}.seg"


def _lost(block: Block, seen: str) -> StateError:
    return StateError(
        f"step {block.step} of rank {block.rank}: {seen}",
        "the bytes that the index refers to",
        "a segment was cut, deleted or damaged after it was written",
        "read another step; `loopwise debug verify` lists the damaged ones",
    )
