"""The CRC-32 of a block, computed while the block is written."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..statistics.native import crc32

LARGE = 2**22
"""Bytes from which on a thread of its own is worth it: their CRC-32 takes 0.5 to 2 ms, as does writing them."""


class Checksum:
    """Computes in a thread that waits while there is nothing to do."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[Sequence[Any] | None] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()
        self._thread: threading.Thread | None = threading.Thread(
            target=self._work, name="loopwise-debug-checksum", daemon=True
        )
        self._thread.start()

    def begin(self, chunks: Sequence[Any]) -> Callable[[], int]:
        """Begin with buffers of bytes; to be called for the CRC-32, before the next ``begin``."""
        if self._thread is None or sum(len(chunk) for chunk in chunks) < LARGE:
            return lambda: _crc32(chunks)
        self._asked.put(chunks)
        return self._answer

    def _answer(self) -> int:
        found = self._found.get()
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        if self._thread is not None:
            self._asked.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (chunks := self._asked.get()) is not None:
            try:
                self._found.put(_crc32(chunks))
            except Exception as error:  # without an answer the writer would wait for ever
                self._found.put(error)


def _crc32(chunks: Sequence[Any]) -> int:
    crc = 0
    for chunk in chunks:
        crc = crc32(chunk, crc)
    return crc
