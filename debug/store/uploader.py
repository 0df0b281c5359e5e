"""Upload of files that wait on this machine for remote storage, in a thread of its own."""

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
"""Largest number of waiting uploads.  Beyond it ``add`` waits; while storage is down, it deletes the oldest one."""
RETRY = 5.0
"""Seconds from a failed attempt to the next one."""


@dataclass
class Upload:
    """Files that belong together."""

    files: list[str]
    """Paths on this machine, in the order of sending."""
    steps: Sequence[int]
    """Numbers of the steps in the files, which are lost if the files cannot be sent."""


class Uploader:
    """Thread that sends files in the order in which they are added.

    Args:
        fs: the fsspec file system.
        target: folder on it.
        tell: function of (text, step), called for each problem; step is the lost step, or -1 if none is lost.
    """

    def __init__(self, fs: Any, target: str, tell: Callable[[str, int], None]) -> None:
        self._fs, self._target, self._tell = fs, target, tell
        self.folder = tempfile.mkdtemp(prefix="loopwise-")
        """Folder on this machine that the files have to be in."""
        self._waiting: deque[Upload] = deque()
        self._changed = threading.Condition()
        self._down = self._closing = False
        self._thread: threading.Thread | None = threading.Thread(
            target=self._work, name="loopwise-debug-sender", daemon=True
        )
        self._thread.start()

    def add(self, files: Sequence[str], steps: Sequence[int]) -> None:
        """Queue files in ``folder``; they are removed from it once they are sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._down or len(self._waiting) < WAITING)
            while len(self._waiting) >= WAITING:
                self._give_up(self._waiting.popleft())
            self._waiting.append(Upload(list(files), steps))
            self._changed.notify_all()

    def close(self) -> None:
        """Send the waiting files and remove ``folder``.

        Raises:
            OSError: storage is down; the files that were not sent stay in ``folder``.
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
        steps = sum(len(upload.steps) for upload in self._waiting)
        raise OSError(
            f"{steps} steps could not be sent to {self._target!r}; the files are in {self.folder!r}: "
            f"copy them to {self._target!r} as soon as it can be reached"
        )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                upload, last = self._waiting.popleft(), self._closing
            try:
                self._send(upload)
            except BaseException as error:  # asyncio's CancelledError is not a subclass of Exception
                if not self._failed(upload, error, last):
                    return
            else:
                with self._changed:
                    self._down = False
                    self._changed.notify_all()

    def _send(self, upload: Upload) -> None:
        while upload.files:
            self._fs.put_file(upload.files[0], f"{self._target}/{os.path.basename(upload.files[0])}")
            os.unlink(upload.files.pop(0))

    def _failed(self, upload: Upload, error: BaseException, last: bool) -> bool:
        """Queue an upload again, wait, and return whether to try again."""
        with self._changed:
            first, self._down = not self._down, True
            self._waiting.appendleft(upload)
            self._changed.notify_all()
            if first:
                self._tell(f"remote storage fails: {error!r}; unsent files wait in {self.folder}", -1)
            if not last:
                self._changed.wait_for(lambda: self._closing, RETRY)
        return not last

    def _give_up(self, upload: Upload) -> None:
        for step in upload.steps:
            self._tell(f"a step is lost: remote storage fails, and {WAITING} segments wait", step)
        for file in upload.files:
            with contextlib.suppress(OSError):
                os.unlink(file)
