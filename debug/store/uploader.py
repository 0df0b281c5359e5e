"""Files that wait on this machine for remote storage, and the thread that sends them."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

WAITING = 8
"""Batches that may wait here; then whoever adds one waits, or, while storage is down, the oldest is given up."""
RETRY = 5.0
"""Seconds from an attempt that failed to the next one."""


@dataclass
class Batch:
    """Files that belong together."""

    files: list[str]
    """Paths on this machine, in the order of sending."""
    steps: Sequence[int]
    """What is lost with them."""


class Sender:
    """Sends batches in the order in which they are added.

    Args:
        fs: the fsspec file system.
        target: the folder there.
        tell: called with what went wrong, and the step that is lost by it, or -1.
    """

    def __init__(self, fs: Any, target: str, tell: Callable[[str, int], None]) -> None:
        self._fs, self._target, self._tell = fs, target, tell
        self.folder = tempfile.mkdtemp(prefix="loopwise-")
        """Where the files have to be."""
        self._waiting: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._down = self._closing = False
        self._thread: threading.Thread | None = threading.Thread(
            target=self._work, name="loopwise-debug-sender", daemon=True
        )
        self._thread.start()

    def add(self, files: Sequence[str], steps: Sequence[int]) -> None:
        """Have files in ``folder`` sent, and removed here."""
        with self._changed:
            self._changed.wait_for(lambda: self._down or len(self._waiting) < WAITING)
            while len(self._waiting) >= WAITING:
                self._give_up(self._waiting.popleft())
            self._waiting.append(Batch(list(files), steps))
            self._changed.notify_all()

    def close(self) -> None:
        """Send what waits and remove ``folder``.

        Raises:
            OSError: storage is down; what waits stays in ``folder``.
        """
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._thread = None
        if not self._waiting:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        steps = sum(len(batch.steps) for batch in self._waiting)
        raise OSError(
            f"{steps} steps could not be sent to {self._target!r}; they are in {self.folder!r}: "
            "copy its files there when it can be reached again"
        )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                batch, last = self._waiting.popleft(), self._closing
            try:
                self._send(batch)
            except BaseException as error:  # asyncio's CancelledError is no Exception
                if not self._failed(batch, error, last):
                    return
            else:
                with self._changed:
                    self._down = False
                    self._changed.notify_all()

    def _send(self, batch: Batch) -> None:
        while batch.files:
            self._fs.put_file(batch.files[0], f"{self._target}/{os.path.basename(batch.files[0])}")
            os.unlink(batch.files.pop(0))

    def _failed(self, batch: Batch, error: BaseException, last: bool) -> bool:
        """Keep the batch and wait; whether to try again."""
        with self._changed:
            first, self._down = not self._down, True
            self._waiting.appendleft(batch)
            self._changed.notify_all()
            if first:
                self._tell(f"remote storage fails: {error!r}; what it lacks waits in {self.folder}", -1)
            if not last:
                self._changed.wait_for(lambda: self._closing, RETRY)
        return not last

    def _give_up(self, batch: Batch) -> None:
        for step in batch.steps:
            self._tell(f"a step is given up: remote storage fails, and {WAITING} segments wait", step)
        for file in batch.files:
            with contextlib.suppress(OSError):
                os.unlink(file)


def before_executors_end(function: Callable[[], None]) -> None:
    """Have a function called when the program ends, as long as event loops can open connections.

    ``atexit`` comes too late: the thread pool in which asyncio looks up addresses takes nothing then.
    """
    import concurrent.futures.thread  # noqa: F401  # its own end is registered by this, and comes after ours

    threading._register_atexit(function)  # type: ignore[attr-defined]  # private, in CPython 3.9 to 3.14
