"""Queue of findings for a slow destination; a thread of its own sends them."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from loopwise.validate import one_of, positive_number, whole_number

from ..rules import SEVERITIES, Finding

HOUR = 3600.0
CAPACITY = 200
"""Largest number of queued findings; further ones are only counted."""


class DeliveryQueue:
    """Function for ``on_finding`` that sends findings later; a failed message is tried once more, with the next finding.

    Args:
        destination: name for messages to the user, without secrets.
        send: called with findings and their text, on the queue's thread; may raise.
        timeout: approximate limit of the seconds that ``send`` takes.
        severity: lowest severity that is sent.
        per_hour: largest number of messages in an hour.

    Raises:
        InputError: ``timeout``, ``severity`` or ``per_hour`` is not valid.
    """

    def __init__(
        self,
        destination: str,
        send: Callable[[Sequence[Finding], str], None],
        timeout: float,
        severity: str,
        per_hour: int,
    ) -> None:
        self._destination, self._send = destination, send
        self._timeout = positive_number("timeout", timeout, "time", 5)
        self._least = SEVERITIES.index(one_of("severity", severity, SEVERITIES))
        self._per_hour = whole_number("per_hour", per_hour, 1, "messages", 20)
        self._known: set[tuple[str, tuple[str, ...]]] = set()
        self._new: deque[Finding] = deque()
        self._unsent: list[Finding] = []
        self._sent_at: deque[float] = deque()
        self._lost = 0
        self._logged_failure = self._closing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def __call__(self, finding: Finding) -> None:
        """Add a finding to the queue and return at once."""
        key = (finding.rule, finding.tensors)
        if SEVERITIES.index(finding.severity) < self._least or key in self._known:
            return
        self._known.add(key)
        with self._changed:
            if len(self._new) + len(self._unsent) < CAPACITY:
                self._new.append(finding)
            else:
                self._lost += 1
            if self._thread is None:
                self._closing = False
                name = "loopwise-debug-delivery"
                self._thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._changed.notify()

    def close(self) -> None:
        """Send the queued findings within twice the timeout of a message; then log the number of lost findings."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        atexit.unregister(self.close)
        with self._changed:
            self._closing = True
            self._changed.notify()
        thread.join(2 * self._timeout)
        with self._changed:
            left = len(self._new) + len(self._unsent) + self._lost
        if left:
            _log(f"findings not sent to {self._destination}: {left}")

    def _work(self) -> None:
        failed = False
        while True:
            with self._changed:
                # a failed message waits for the next finding
                seconds = None if failed else self._seconds_to_next()
                self._changed.wait_for(lambda: self._new or self._closing, seconds)
                fresh = self._new.popleft() if self._new else None
                closing, ends = self._closing, self._closing and fresh is None
                if fresh is not None:
                    self._unsent.append(fresh)
            # closing waits for no more than two attempts
            allowed = self._seconds_to_next() == 0 and not (closing and failed)
            if self._unsent and (ends or allowed):
                failed = not self._deliver()
            if ends:
                return

    def _seconds_to_next(self) -> float | None:
        """Return the seconds until the next message is allowed; ``None`` if there is nothing to send."""
        now = time.monotonic()
        while self._sent_at and now - self._sent_at[0] >= HOUR:
            self._sent_at.popleft()
        if not self._unsent:
            return None
        return 0.0 if len(self._sent_at) < self._per_hour else self._sent_at[0] + HOUR - now

    def _deliver(self) -> bool:
        self._sent_at.append(time.monotonic())
        findings, lost = list(self._unsent), self._lost
        text = "\n\n".join(map(str, findings)) + (f"\n\nand {lost} more" if lost else "")
        try:
            self._send(findings, text)
        except Exception as error:
            if not self._logged_failure:
                self._logged_failure = True
                _log(f"findings could not be sent to {self._destination}: {error!r}")
            return False
        with self._changed:
            self._unsent.clear()
            self._lost -= lost
        return True


def _log(text: str) -> None:
    logging.getLogger("loopwise.debug").warning("%s", text)
