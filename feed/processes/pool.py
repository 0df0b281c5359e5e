"""The pool of local worker processes."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Sequence
from typing import Any

from loopwise.errors import StateError

from ..protocol import Counters, Lost, Result, Task, Work
from .member import Member

PATIENCE = 5.0
"""Seconds that workers get to finish the sample in work when the pool is closed, as in DataLoader."""
LOOK = 5.0
"""Seconds after which the pool looks whether workers are alive, since a process that a worker has forked keeps its end of the
connection open."""
FRUITLESS = 3
"""Workers in a row that may end before they have loaded anything."""


class ProcessPool:
    """Local workers, in the sense of ``loopwise.feed.protocol.Pool``.

    Lane ``l`` belongs to the worker ``l % processes``.  A worker that has ended is replaced when one of its lanes gets the next
    task.

    Args:
        context: the context of ``multiprocessing`` that starts processes.
        processes: number of workers.
        batches: number of batches for which each worker keeps free memory.
    """

    def __init__(self, context: Any, processes: int, batches: int) -> None:
        self._context, self._count, self._batches = context, processes, batches
        self._members: dict[int, Member] = {}
        self._ready: list[Result | Lost] = []
        self._poll = select.poll()
        self._by_descriptor: dict[int, int] = {}
        """Descriptor of a connection or of a process's end -> the number of the worker."""
        self._fruitless = 0
        self._owner = os.getpid()
        self._held = Counters()
        self._held.held_bytes = lambda: sum(member.views.held_bytes for member in self._members.values())
        self._held.workers = lambda: len(self._members)

    @property
    def processes(self) -> Sequence[Any]:
        """Return the worker processes."""
        return [member.process for _, member in sorted(self._members.items())]

    @property
    def counters(self) -> Counters:
        """Return the counts of this pool."""
        return self._held

    def start(self, work: Work) -> None:
        """Start all workers."""
        self._work = work
        for number in range(self._count):
            self._launch(number)

    def submit(self, task: Task) -> None:
        """Send a task to the worker of its lane, which is started if it has ended."""
        number = task.lane % self._count
        member = self._members.get(number) or self._launch(number)
        member.submit(task)

    def receive(self, timeout: float | None) -> list[Result | Lost]:
        """Return what has arrived; wait for it, up to ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._collect(0.0)
            if self._ready:
                ready, self._ready = self._ready, []
                return ready
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return []
            self._collect(LOOK if left is None else min(left, LOOK))

    def close(self) -> None:
        """Stop the workers: they finish the sample in work if that takes less than 5 seconds."""
        members, self._members = list(self._members.values()), {}
        if os.getpid() != self._owner:
            return  # in a forked child, where the object is a copy
        for member in members:
            member.stop()
        deadline = time.monotonic() + PATIENCE
        for member in members:
            member.process.join(max(0.0, deadline - time.monotonic()))
        for end in ("terminate", "kill"):
            alive = [member.process for member in members if member.process.is_alive()]
            for process in alive:
                getattr(process, end)()
            for process in alive:
                process.join(1.0)
        for member in members:
            member.release()
        self._by_descriptor.clear()
        self._ready.clear()

    def _launch(self, number: int) -> Member:
        several = self._work.lanes > self._count
        member = Member(self._context, self._work, several, self._batches, self._held)
        self._members[number] = member
        for descriptor in (member.channel.fileno(), member.process.sentinel):
            self._by_descriptor[descriptor] = number
            self._poll.register(descriptor, select.POLLIN)
        return member

    def _collect(self, seconds: float | None) -> None:
        """Wait for messages and ends of workers, up to ``seconds``, and keep what they say."""
        for member in self._members.values():
            self._send_kept(member)
        milliseconds = None if seconds is None else max(0.0, seconds * 1000)
        numbers = {self._by_descriptor[descriptor] for descriptor, _ in self._poll.poll(milliseconds)}
        if seconds and not numbers:
            numbers = {n for n, member in self._members.items() if not member.process.is_alive()}
        for number in sorted(numbers):
            member = self._members[number]
            ended = not member.process.is_alive()
            results = member.receive()
            if results:
                self._fruitless = 0
                self._ready += results
            if ended or member.channel.ended:
                self._ready.append(self._lose(number, member))

    def _send_kept(self, member: Member) -> None:
        """Send messages that a socket did not take at once, and wait for the socket as long as some are left."""
        member.channel.flush()
        if member.channel.has_outgoing != member.polled_for_sending:
            member.polled_for_sending = member.channel.has_outgoing
            events = select.POLLIN | select.POLLOUT if member.polled_for_sending else select.POLLIN
            self._poll.modify(member.channel.fileno(), events)

    def _lose(self, number: int, member: Member) -> Lost:
        for descriptor in (member.channel.fileno(), member.process.sentinel):
            self._poll.unregister(descriptor)
            del self._by_descriptor[descriptor]
        del self._members[number]
        self._held.workers_lost += 1
        lost = member.lost(list(range(number, self._work.lanes, self._count)))
        self._fruitless += lost.number is None
        if self._fruitless >= FRUITLESS:
            raise StateError(
                f"{FRUITLESS} worker processes in a row that loaded nothing; the last one {lost.reason}",
                "worker processes that start and load batches",
                "the machine has no memory left, or the dataset cannot be loaded in a new process",
                "look at what the workers printed, or try num_workers=0, which loads in this process",
            )
        return lost
