"""The CRC-32 of a block, computed while the block is written."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ..statistics.native import crc32

LARGE = 2**22
"""Number of bytes from which on a second thread saves time: CRC-32 and writing take 0.5 to 2 ms each."""


class Checksum:
    """Thread that computes the CRC-32 of large blocks, and sleeps in between."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[Sequence[Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[int | Exception] = queue.SimpleQueue()
        self._thread: threading.Thread | None = threading.Thread(
            target=self._work, name="loopwise-debug-checksum", daemon=True
        )
        self._thread.start()

    def begin(self, chunks: Sequence[Any]) -> Callable[[], int]:
        """Start on buffers of bytes; the function returned waits for their CRC-32 and is called before the next start."""
        if self._thread is None or sum(len(chunk) for chunk in chunks) < LARGE:
            return lambda: _crc32(chunks)
        self._requests.put(chunks)
        return self._result

    def _result(self) -> int:
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._requests.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (chunks := self._requests.get()) is not None:
            try:
                self._results.put(_crc32(chunks))
            except Exception as error:  # without a result the writer would wait for ever
                self._results.put(error)


def _crc32(chunks: Sequence[Any]) -> int:
    return functools.reduce(lambda crc, chunk: crc32(chunk, crc), chunks, 0)
