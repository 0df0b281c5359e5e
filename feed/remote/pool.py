"""The pool of workers on the nodes of a group, in the sense of ``loopwise.feed.protocol.Pool``."""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections.abc import Sequence
from typing import Any

from loopwise.errors import LoopwiseError
from loopwise.ranks import world_size

from ..protocol import Counters, Lost, Result, Task, Work
from . import cluster
from .elastic import Elastic
from .fleet import Fleet
from .shipment import ship

_idle: list[Fleet] = []
"""Fleets that no pool uses."""
_lock = threading.Lock()


def take_fleet(group: str, count: int | None, most: int) -> Fleet:
    """Return a fleet that no pool uses, or a new one.

    Args:
        group: name of the group.
        count: number of workers; ``None``: it follows what training waits for.
        most: most workers in that case.
    """
    with _lock:
        _idle[:] = [fleet for fleet in _idle if not fleet.closed.is_set()]
        for fleet in _idle:
            elastic = fleet.elastic
            same = elastic is None and fleet.count == count
            if fleet.group == group and (
                same or (elastic is not None and count is None and elastic.most <= most)
            ):
                _idle.remove(fleet)
                return fleet
    return Fleet(group, count or 1, Elastic(most) if count is None else None)


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
        workers: number of workers; ``None``: it follows what training waits for.
        batches: number of batches for which each worker keeps free memory.
        lanes: number of lanes, which is the most workers.

    Raises:
        InputError: no node belongs to the group.
        StateError: there is no cluster.
    """

    def __init__(self, group: str, workers: int | None, batches: int, lanes: int) -> None:
        cluster.attach(group)
        cpus = sum(node.cpus for node in cluster.members(group))
        self._most = max(1, min(lanes, -(-cpus // world_size())))
        self._group, self._workers, self._batches = group, workers, batches
        self._arrivals: queue.SimpleQueue[Result | Lost | LoopwiseError] = queue.SimpleQueue()
        self._fleet: Fleet | None = None
        self._counters = Counters()
        self._since = time.monotonic()
        """End of the last measurement of what training waits for."""

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
        # lanes of an iterable dataset would have to pass over what they have delivered whenever they move
        count = self._most if self._workers is None and work.iterable else self._workers
        while True:
            self._fleet = fleet = take_fleet(self._group, count, self._most)
            if fleet.command("begin", shipment, self._arrivals, self._counters):
                break
        self._counters.held_bytes = lambda: fleet.held_bytes
        self._counters.workers = lambda: fleet.count if self._fleet is fleet else 0
        if fleet.elastic is not None:
            fleet.elastic.restart()

    def submit(self, task: Task) -> None:
        """Send a task to the worker of its lane."""
        if self._fleet is not None:
            self._fleet.command("submit", task)

    def receive(self, timeout: float | None) -> list[Result | Lost]:
        """Return what has arrived; wait for it, up to ``timeout`` seconds."""
        before = time.monotonic()
        results = self._wait(timeout)
        self._adapt(results, before)
        return results

    def _adapt(self, results: list[Result | Lost], before: float) -> None:
        """Let the number of workers follow what training waits for; ``before``: time when it began to wait."""
        fleet, now = self._fleet, time.monotonic()
        seconds, self._since = now - self._since, now
        if fleet is None or fleet.elastic is None:
            return
        if fleet.count != fleet.running:  # workers are starting or were lost
            fleet.elastic.restart()
            return
        arrived = [result for result in results if isinstance(result, Result)]
        loading = sum(result.seconds for result in arrived)
        count = fleet.elastic.observe(len(arrived), seconds, now - before, loading)
        if count != fleet.count:
            fleet.command("resize", count)

    def _wait(self, timeout: float | None) -> list[Result | Lost]:
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
