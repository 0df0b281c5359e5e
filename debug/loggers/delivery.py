"""Delivery of steps and findings to loggers: a queue and a thread for each, so that nothing waits for a logger."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..rules import Finding
from ..store.layout import Layout, Read
from .logger import LoggedStep, Logger, step_of

CAPACITY = 1000
"""Largest number of steps that wait for a logger; further ones are left out and counted."""
PATIENCE = 60.0
"""Seconds after which a logger that still has not taken all steps is left at the end of training."""
POLL = 0.2


class Delivery:
    """Queue and thread of one logger.

    The training thread and the writer share no lock of Python's library with this thread, as an interrupt may end their
    calls at any place.

    Args:
        logger: the destination.

    Attributes:
        dropped: number of steps that were left out because too many waited.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger, self.name = logger, type(logger).__name__
        self._items: queue.SimpleQueue[LoggedStep | Finding | None] = queue.SimpleQueue()
        self._problems: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._over = self._ended = False
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="loopwise-debug-logger", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no threads left
            self._over = self._ended = True
            self._problems.put(f"{self.name} is switched off: {error!r}")

    def add_step(self, record: Mapping[str, Any], layout: Layout, read: Read) -> None:
        """Queue a step; leave it out if too many wait."""
        if self._over:
            return
        if self._items.qsize() < CAPACITY:
            self._items.put(step_of(record, layout, read, self._logger.statistics))
            return
        if not self.dropped:
            self._problems.put(
                f"{self.name} is slower than training: steps are left out there, from step {record['step']} on"
            )
        self.dropped += 1

    def add_finding(self, finding: Finding) -> None:
        """Queue a finding."""
        if not self._over:
            self._items.put(finding)

    def problems(self) -> list[str]:
        """Return the messages for the user since the last call."""
        messages = []
        while not self._problems.empty():
            messages.append(self._problems.get())
        return messages

    def close(self) -> None:
        """Wait a limited time until the logger has taken all that is queued, and end the thread."""
        if not self._over:
            self._over = True
            self._items.put(None)
        limit = time.monotonic() + PATIENCE
        while not self._ended and time.monotonic() < limit:
            time.sleep(POLL / 20 if time.monotonic() < limit - PATIENCE + POLL else POLL)
        if self._ended and self._thread.ident is not None:
            self._thread.join(1.0)
        elif not self._ended:
            self._problems.put(
                f"{self.name} has not ended after {PATIENCE:g} seconds: {self._items.qsize()} or more steps "
                "and findings may be missing there"
            )

    def _work(self) -> None:
        try:
            while self._deliver(self._next()):
                pass
            self._logger.close()
        except BaseException as error:  # nothing of a logger may reach the training
            self._over = True
            self._problems.put(f"{self.name} is switched off: {error!r}")
            with contextlib.suppress(BaseException):
                self._logger.close()
        finally:
            self._ended = True

    def _next(self) -> list[LoggedStep | Finding | None]:
        """Wait for an item and return all that are queued."""
        items = [self._items.get()]
        while not self._items.empty() and len(items) < CAPACITY:
            items.append(self._items.get())
        return items

    def _deliver(self, items: list[LoggedStep | Finding | None]) -> bool:
        """Give items to the logger; return whether more may come."""
        if steps := [item for item in items if isinstance(item, LoggedStep)]:
            self._logger.log_steps(steps)
        for item in items:
            if isinstance(item, Finding):
                self._logger.log_finding(item)
        return None not in items


class Deliveries:
    """Delivery to several loggers, each on its own.

    Args:
        loggers: the destinations.
    """

    def __init__(self, loggers: Iterable[Logger]) -> None:
        self._all = [Delivery(logger) for logger in loggers]

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def dropped(self) -> int:
        """Number of steps that loggers did not get because they were too slow."""
        return sum(delivery.dropped for delivery in self._all)

    def add_step(self, record: Mapping[str, Any], layout: Layout, read: Read) -> None:
        """Queue a saved step; ``read`` returns bytes of its block, during this call."""
        for delivery in self._all:
            delivery.add_step(record, layout, read)

    def add_finding(self, finding: Finding) -> None:
        """Queue a finding."""
        for delivery in self._all:
            delivery.add_finding(finding)

    def problems(self) -> list[str]:
        """Return the messages for the user since the last call."""
        return [text for delivery in self._all for text in delivery.problems()]

    def close(self) -> None:
        """Wait a limited time until all loggers have taken what is queued."""
        for delivery in self._all:
            delivery.close()
