"""Thread that writes saved steps and findings while training goes on."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import queue
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import torch

from loopwise.run import Run
from loopwise.torch_internals import call_before_executors_end
from loopwise.warnings import warn

from ..loggers.delivery import Deliveries
from ..rules import Finding
from ..rules.saved_steps import SavedStepRules
from ..store.group import ALIGNMENT, Group
from ..store.host_buffer import BufferPool, HostBuffer
from ..store.layout import Layout
from ..store.segments import Segments
from .step import PendingStep

T = TypeVar("T")
ON_BACKLOG = ("block", "drop", "reduce")
"""Ways to go on if storage is slower than training: wait, drop the step's raw tensors, or save statistics of them."""
BUFFERS = 2
"""Largest number of steps whose raw tensors are in host memory: one is filled while the other one is written."""
PENDING = 256
"""Largest number of waiting jobs.  Beyond it the training thread waits, whatever ``on_backlog`` is."""
POLL = 0.002
"""Seconds between two looks at the number of waiting jobs, while training waits for storage."""
LOST = 0.1
"""Seconds without work and without a free buffer, after which a buffer is taken for lost by an interrupt."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A buffer for one step."""

    buffer: HostBuffer
    raw: bool
    """True if raw tensors may go into it, or the step has none."""
    give_back: Callable[[], None]


class ScalarStep(NamedTuple):
    """Scalars of a step of which nothing else is saved."""

    record: dict[str, Any]
    groups: tuple[Group, ...]
    values: list[Any]
    """Numbers in the order of the groups' names; a tensor stands for a number that is still being copied."""


class Writer:
    """Thread that writes steps in the order of submission.

    An interrupt (``KeyboardInterrupt``, or what a handler of a signal raises) may end any method at any place, so the
    training thread shares no lock of Python's library with this thread: a queue and a lock written in C are enough.

    Args:
        run: the run's folder.
        pinned: use page-locked memory.
        on_backlog: one of ``ON_BACKLOG``.
        rules: rules that are applied to each step, on this thread; ``None``: none.
        loggers: destinations of each step's numbers.
    """

    def __init__(
        self,
        run: Run,
        pinned: bool,
        on_backlog: str,
        rules: SavedStepRules | None = None,
        loggers: Deliveries | None = None,
    ) -> None:
        self._run, self._rules, self._loggers = run, rules, loggers
        self._findings: queue.SimpleQueue[Finding] = queue.SimpleQueue()
        self._problems: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._segments = Segments(run, tell=self._tell)
        self._buffers, self._small_buffers = BufferPool(BUFFERS, pinned), BufferPool(0, pinned)
        self._on_backlog, self._pinned = on_backlog, pinned
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="loopwise-debug-writer", daemon=True)
        self._process = os.getpid()
        self._closed = self._ended = False
        self._idle = True
        self._end_of_work = threading.Lock()
        self._end_of_work.acquire()
        try:
            self._thread.start()
        except BaseException:
            self._jobs.put(None)
            self._segments.close()
            raise
        self._exit = functools.partial(_at_exit, weakref.WeakMethod(self._end))
        atexit.register(self._exit)
        if not run.local:
            call_before_executors_end(self._exit)

    def lease(self, raw: bool) -> Lease:
        """Return a buffer for a step; wait for one if there are raw tensors and ``on_backlog`` is ``block``."""
        large = self._large_buffer() if raw else None
        if large is not None:
            return Lease(large, True, lambda: self._buffers.give_back(large))
        small = self._small_buffers.take(wait=False) or HostBuffer(self._pinned)
        return Lease(small, not raw, lambda: self._small_buffers.give_back(small))

    def _large_buffer(self) -> HostBuffer | None:
        """Return a buffer for raw tensors; ``None`` if all are in use and training does not wait.

        If all are in use and nothing is left to be written, an interrupt lost a buffer, and a new one takes its place.
        """
        while (buffer := self._buffers.take(wait=False)) is None:
            idle = self._idle and self._jobs.empty()
            if not idle and self._on_backlog != "block":
                return None
            if (buffer := self._buffers.take(wait=True, seconds=LOST)) is not None:
                return buffer
            if idle and self._idle and self._jobs.empty():
                return HostBuffer(self._pinned)
        return buffer

    def _put(self, job: Callable[[], None]) -> None:
        """Queue a job; wait while too many are waiting."""
        while self._jobs.qsize() >= PENDING and not self._ended:
            time.sleep(POLL)
        self._jobs.put(job)

    def submit(self, step: PendingStep, lease: Lease) -> None:
        """Queue a step to be written, after which its buffer is given back."""
        if self._closed:
            lease.give_back()
            self._tell("a step came after the end: it is not saved", step.record["step"])
            return

        def write() -> None:
            try:
                self._write(step, lease.buffer)
            finally:
                lease.give_back()

        self._put(self._guarded(write, "a step could not be written", step.record["step"]))

    def submit_scalars(self, steps: Sequence[ScalarStep], copied: Callable[[], list[float]]) -> None:
        """Queue steps of scalars to be written.

        Args:
            steps: the steps, in order.
            copied: function that returns the numbers of all tensors among the values, in order; it may wait.
        """
        write = functools.partial(self._write_scalars, steps, copied)
        if not self._closed:
            self._put(self._guarded(write, "scalars could not be written", steps[0].record["step"]))

    def event(self, text: str, step: int) -> None:
        """Queue a note for the index."""
        write = functools.partial(self._segments.event, text, step)
        if not self._closed:
            self._put(self._guarded(write, "an event could not be written", -1))

    def restart(self, step: int) -> None:
        """Queue a note that training goes back to a step."""
        write = functools.partial(self._segments.restart, step)
        if not self._closed:
            self._put(self._guarded(write, "a restart could not be written", -1))

    def has_news(self) -> bool:
        """Return whether there are errors or findings since they were asked for."""
        return not (self._problems.empty() and self._findings.empty())

    def problems(self) -> list[tuple[str, int]]:
        """Return the errors since the last call, each with the number of the lost step, or -1 if none is lost."""
        return _emptied(self._problems)

    def close(self) -> None:
        """Write all queued steps and end the thread; call it again if an interrupt ended the first call."""
        if self._process != os.getpid() or threading.current_thread() is self._thread:
            return  # a fork has no such thread
        if not self._closed:
            self._jobs.put(None)
            self._closed = True
        while not self._ended:
            self._end_of_work.acquire(timeout=1.0)
        self._thread.join(1.0)
        atexit.unregister(self._exit)

    def _end(self) -> None:
        """Close the writer when the process ends without ``close``, and warn of its errors."""
        self.close()
        for text, _ in self.problems():
            warn(f"loopwise.debug: {text}", stacklevel=2)

    def _write(self, step: PendingStep, buffer: HostBuffer) -> None:
        for event in step.events:
            event.synchronize()
        chunks = buffer.chunks()
        layout = self._segments.write(step.groups, chunks, step.record)
        self._pass_on(step.record, layout, chunks)

    def _write_scalars(self, steps: Sequence[ScalarStep], copied: Callable[[], list[float]]) -> None:
        numbers = iter(copied())
        blocks = [(step.groups, _block(step, numbers), step.record) for step in steps]
        layouts = self._segments.write_scalars(blocks)
        for (_, block, record), layout in zip(blocks, layouts, strict=True):
            self._pass_on(record, layout, [memoryview(block)])

    def _pass_on(self, of: dict[str, Any], layout: Layout, chunks: Sequence[memoryview]) -> None:
        """Give a written step to the rules and the loggers."""
        if self._rules is not None:
            apply = functools.partial(self._apply_rules, self._rules, of, layout, chunks)
            self._guarded(apply, "rules could not look at a step", -1)()
        if self._loggers is not None:
            add = functools.partial(self._loggers.add_step, of, layout, functools.partial(_read, chunks))
            self._guarded(add, "loggers could not get a step", -1)()

    def _apply_rules(
        self, rules: SavedStepRules, of: dict[str, Any], layout: Layout, chunks: Sequence[memoryview]
    ) -> None:
        """Apply the rules to a step, pass the findings to the training thread and write them."""
        findings = rules.apply(SimpleNamespace(**of), layout, functools.partial(_read, chunks))
        for finding in findings:
            self._findings.put(finding)
        while rules.failures:
            self._tell(rules.failures.pop(0), -1)
        record(self._run, findings)

    def record(self, findings: Sequence[Finding]) -> None:
        """Queue findings that other threads made, to be written."""
        write = functools.partial(record, self._run, findings)
        if not self._closed:
            self._put(self._guarded(write, "findings could not be written", -1))

    def findings(self) -> list[Finding]:
        """Return the findings of the rules since the last call."""
        return _emptied(self._findings)

    def _work(self) -> None:
        rest = self._guarded(self._segments.rest, "a segment could not be closed", -1)
        try:
            while True:
                self._idle = True
                try:
                    job = self._jobs.get(timeout=self._segments.patience)
                except queue.Empty:
                    job = rest
                self._idle = False
                if job is None:
                    break
                job()
            self._guarded(self._segments.close, "not all could be written", -1)()
        finally:
            self._ended = True
            self._end_of_work.release()

    def _guarded(self, job: Callable[[], None], what: str, step: int) -> Callable[[], None]:
        """Return a function that runs ``job`` and reports its failure."""

        def run() -> None:
            try:
                job()
            except BaseException as error:  # without this thread, training would wait for ever
                self._tell(f"{what}: {error!r}", step)

        return run

    def _tell(self, text: str, step: int) -> None:
        self._problems.put((text, step))


def record(run: Run, findings: Sequence[Finding]) -> None:
    """Write findings into a run."""
    for finding in findings:
        run.append("debug", "findings", finding.record())
    if findings and not run.local:
        run.flush()


def _block(step: ScalarStep, copied: Iterator[float]) -> bytes:
    """Return the bytes of a block of scalars."""
    numbers = iter([next(copied) if isinstance(value, torch.Tensor) else value for value in step.values])
    data = bytearray()
    for group in step.groups:
        table = struct.pack(f"<{len(group.names)}d", *itertools.islice(numbers, len(group.names)))
        data += table + bytes(-len(table) % ALIGNMENT)
    return bytes(data)


def _emptied(items: queue.SimpleQueue[T]) -> list[T]:
    """Return all items and remove them."""
    taken = []
    while not items.empty():
        taken.append(items.get())
    return taken


def _read(chunks: Sequence[memoryview], offset: int, length: int) -> memoryview:
    """Return ``length`` bytes of a block; one chunk holds all of them."""
    for chunk in chunks:
        if offset < len(chunk) or not length:
            return chunk[offset : offset + length]
        offset -= len(chunk)
    raise IndexError(offset)


def _at_exit(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    if (end := method()) is not None:
        end()
