"""The pool of workers on the nodes of a group, in the sense of ``loopwise.feed.protocol.Pool``."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Sequence
from typing import Any

from loopwise.errors import LoopwiseError

from ..protocol import Counters, Lost, Result, Task, Work
from . import cluster
from .fleet import Fleet
from .shipment import ship

_idle: list[Fleet] = []
"""Fleets that no pool uses."""
_lock = threading.Lock()


def take_fleet(group: str, count: int) -> Fleet:
    """Return a fleet that no pool uses, or a new one."""
    with _lock:
        _idle[:] = [fleet for fleet in _idle if not fleet.closed.is_set()]
        for fleet in _idle:
            if (fleet.group, fleet.count) == (group, count):
                _idle.remove(fleet)
                return fleet
    return Fleet(group, count)


@atexit.register
def close_fleets() -> None:
    """End the fleets that no pool uses; they would end by themselves after 30 s."""
    with _lock:
        fleets, _idle[:] = list(_idle), []
    for fleet in fleets:
        fleet.close()


class RemotePool:
    """Workers on the nodes of a group.

    Args:
        group: name of the group: a resource that its Ray nodes have.
        workers: number of workers.
        batches: number of batches for which each worker keeps free memory.

    Raises:
        InputError: no node belongs to the group.
        StateError: there is no cluster.
    """

    def __init__(self, group: str, workers: int, batches: int) -> None:
        cluster.attach(group)
        cluster.members(group)
        self._group, self._workers, self._batches = group, workers, batches
        self._arrivals: queue.SimpleQueue[Result | Lost | LoopwiseError] = queue.SimpleQueue()
        self._fleet: Fleet | None = None
        self._counters = Counters()

    @property
    def processes(self) -> Sequence[Any]:
        """Return nothing: the workers are no processes of this one."""
        return ()

    @property
    def counters(self) -> Counters:
        """Return the counts of this pool."""
        return self._counters

    def start(self, work: Work) -> None:
        """Send the work to workers of an earlier pool, or start workers."""
        shipment = ship(work, self._batches)
        while True:
            self._fleet = fleet = take_fleet(self._group, self._workers)
            if fleet.command("begin", shipment, self._arrivals, self._counters):
                break
        self._counters.held_bytes = lambda: fleet.held_bytes

    def submit(self, task: Task) -> None:
        """Send a task to the worker of its lane."""
        if self._fleet is not None:
            self._fleet.command("submit", task)

    def receive(self, timeout: float | None) -> list[Result | Lost]:
        """Return what has arrived; wait for it, up to ``timeout`` seconds."""
        results: list[Result | Lost] = []
        try:
            while True:
                item = self._arrivals.get(timeout=timeout) if not results else self._arrivals.get_nowait()
                if isinstance(item, LoopwiseError):
                    if not results:
                        raise item
                    self._arrivals.put(item)
                    return results
                results.append(item)
        except queue.Empty:
            return results

    def close(self) -> None:
        """End the work; the workers wait 30 s for another pool."""
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.command("end")
            self._arrivals = queue.SimpleQueue()  # drops the results, which releases their memory
            with _lock:
                _idle.append(fleet)
