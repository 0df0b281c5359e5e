"""The thread that writes what was saved, while training goes on."""

from __future__ import annotations

import atexit
import functools
import queue
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TypeVar

from loopwise.run import Run

from ..rules import Finding
from ..rules.saved_steps import SavedStepRules
from ..store.host_buffer import BufferPool, HostBuffer
from ..store.layout import Layout
from ..store.segments import Segments
from ..store.uploader import before_executors_end
from .step import Saving

T = TypeVar("T")
POLICIES = ("block", "drop", "reduce")
"""When the storage is slower than training: wait, leave the step's raw tensors out, or keep statistics of them."""
SNAPSHOTS = 2
"""Saved steps held in host memory at most: one that is filled while another one is written."""
PENDING = 256
"""Steps without raw tensors that may wait to be written; then training waits."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A snapshot for one step."""

    snapshot: HostBuffer
    raw: bool
    """Whether raw tensors may go into it; not where the storage is behind."""
    give_back: Callable[[], None]


class Writer:
    """Writes savings in the order of submission.

    Args:
        run: the run's folder.
        pinned: snapshots in page-locked memory.
        policy: one of ``POLICIES``.
        judge: looks at each step, on this thread; ``None``: nobody does.
    """

    def __init__(self, run: Run, pinned: bool, policy: str, judge: SavedStepRules | None = None) -> None:
        self._run, self._judge = run, judge
        self._found: queue.SimpleQueue[Finding] = queue.SimpleQueue()
        self._problems: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._segments = Segments(run, tell=self._tell)
        self._ring, self._spare = BufferPool(SNAPSHOTS, pinned), BufferPool(0, pinned)
        self._policy, self._pinned = policy, pinned
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(PENDING)
        self._thread = threading.Thread(target=self._work, name="loopwise-debug-writer", daemon=True)
        self._closed = False
        self._thread.start()
        self._exit = functools.partial(_at_exit, weakref.WeakMethod(self._end))
        atexit.register(self._exit)
        if not run.local:
            before_executors_end(self._exit)

    def lease(self, raw: bool) -> Lease:
        """Memory for a step; waits for it where raw tensors are wanted and the policy says so."""
        found = self._ring.take(wait=self._policy == "block") if raw else None
        if found is not None:
            return Lease(found, True, lambda: self._ring.give_back(found))
        small = self._spare.take(wait=False) or HostBuffer(self._pinned)
        return Lease(small, not raw, lambda: self._spare.give_back(small))

    def submit(self, saving: Saving, lease: Lease) -> None:
        """Have a step written, and its snapshot given back."""
        if self._closed:
            lease.give_back()
            self._tell("a step came after the end: it is not saved", saving.record["step"])
            return

        def write() -> None:
            try:
                self._write(saving, lease.snapshot)
            finally:
                lease.give_back()

        self._jobs.put(self._guarded(write, "a step could not be written", saving.record["step"]))

    def event(self, text: str, step: int) -> None:
        """Note something in the index, in its turn."""
        note = functools.partial(self._segments.event, text, step)
        if not self._closed:
            self._jobs.put(self._guarded(note, "an event could not be written", -1))

    def problems(self) -> list[tuple[str, int]]:
        """What went wrong since the last call, with the step that is lost by it, or -1."""
        return _emptied(self._problems)

    def close(self) -> None:
        """Write what is pending and end the thread; again where the user interrupted it."""
        if not self._closed:
            self._jobs.put(None)
            self._closed = True
        self._thread.join()
        atexit.unregister(self._exit)

    def _end(self) -> None:
        """Where nobody closes, close and say what went wrong."""
        self.close()
        for text, _ in self.problems():
            warnings.warn(f"loopwise.debug: {text}", RuntimeWarning, stacklevel=2)

    def _write(self, saving: Saving, snapshot: HostBuffer) -> None:
        for event in saving.ready:
            event.synchronize()
        chunks = snapshot.chunks()
        layout = self._segments.write(saving.layout(), chunks, saving.record)
        if self._judge is not None:
            judged = functools.partial(self._judged, self._judge, saving, layout, chunks)
            self._guarded(judged, "rules could not look at a step", -1)()

    def _judged(
        self, judge: SavedStepRules, saving: Saving, layout: Layout, chunks: Sequence[memoryview]
    ) -> None:
        """What is found goes into the run and to the training thread."""
        found = judge.apply(SimpleNamespace(**saving.record), layout, functools.partial(_read, chunks))
        for finding in found:
            self._found.put(finding)
        while judge.failures:
            self._tell(judge.failures.pop(0), -1)
        record(self._run, found)

    def record(self, found: Sequence[Finding]) -> None:
        """Write down what others found, in its turn."""
        write = functools.partial(record, self._run, found)
        if not self._closed:
            self._jobs.put(self._guarded(write, "findings could not be written", -1))

    def findings(self) -> list[Finding]:
        """What was found since the last call."""
        return _emptied(self._found)

    def _work(self) -> None:
        rest = self._guarded(self._segments.rest, "a segment could not be closed", -1)
        while True:
            try:
                job = self._jobs.get(timeout=self._segments.patience)
            except queue.Empty:
                job = rest
            if job is None:
                break
            job()
        self._guarded(self._segments.close, "not all could be written", -1)()

    def _guarded(self, job: Callable[[], None], what: str, step: int) -> Callable[[], None]:
        """``job``, whose failure is told."""

        def run() -> None:
            try:
                job()
            except BaseException as error:  # without this thread training would wait for ever
                self._tell(f"{what}: {error!r}", step)

        return run

    def _tell(self, text: str, step: int) -> None:
        self._problems.put((text, step))


def record(run: Run, found: Sequence[Finding]) -> None:
    """Write findings into a run."""
    for finding in found:
        run.append("debug", "findings", finding.record())
    if found and not run.local:
        run.flush()


def _emptied(several: queue.SimpleQueue[T]) -> list[T]:
    found = []
    while not several.empty():
        found.append(several.get())
    return found


def _read(chunks: Sequence[memoryview], offset: int, length: int) -> memoryview:
    """Bytes of a block, which lie in one chunk."""
    for chunk in chunks:
        if offset < len(chunk) or not length:
            return chunk[offset : offset + length]
        offset -= len(chunk)
    raise IndexError(offset)


def _at_exit(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    if (end := method()) is not None:
        end()
