"""Findings on their way to somewhere slow: a thread of their own sends them."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from ..rules import SEVERITIES, Finding

HOUR = 3600.0
HELD = 200
"""Findings that wait at most; of more only their number is told."""


class Outbox:
    """Call it with a finding, which it sends when it can; what fails is tried once more with the next, or at the end.

    Args:
        where: for messages, without secrets.
        send: called with findings and their text, on another thread; may raise.
        timeout: seconds that it takes at most, more or less.
        severity: the least one that is sent.
        per_hour: messages at most.
    """

    def __init__(
        self,
        where: str,
        send: Callable[[Sequence[Finding], str], None],
        timeout: float,
        severity: str,
        per_hour: int,
    ) -> None:
        self._where, self._send, self._timeout = where, send, timeout
        self._least, self._per_hour = SEVERITIES.index(severity), per_hour
        self._told: set[tuple[str, tuple[str, ...]]] = set()
        self._new: deque[Finding] = deque()
        self._held: list[Finding] = []
        self._sent: deque[float] = deque()
        self._lost = 0
        self._said = self._closing = False
        self._ready = threading.Condition()
        self._thread: threading.Thread | None = None

    def __call__(self, finding: Finding) -> None:
        """Take a finding to send; returns at once."""
        key = (finding.rule, finding.tensors)
        if SEVERITIES.index(finding.severity) < self._least or key in self._told:
            return
        self._told.add(key)
        with self._ready:
            if len(self._new) + len(self._held) < HELD:
                self._new.append(finding)
            else:
                self._lost += 1
            if self._thread is None:
                self._closing = False
                self._thread = threading.Thread(target=self._work, name="loopwise-debug-outbox", daemon=True)
                self._thread.start()
                atexit.register(self.close)
            self._ready.notify()

    def close(self) -> None:
        """Send what waits, or give it up: after twice the time that a message may take."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        atexit.unregister(self.close)
        with self._ready:
            self._closing = True
            self._ready.notify()
        thread.join(2 * self._timeout)
        with self._ready:
            left = len(self._new) + len(self._held) + self._lost
        if left:
            self._say(f"findings not told to {self._where}: {left}")

    def _work(self) -> None:
        failed = False
        while True:
            with self._ready:
                patience = None if failed else self._patience()  # what failed goes with the next
                self._ready.wait_for(lambda: self._new or self._closing, patience)
                fresh = self._new.popleft() if self._new else None
                closing, ends = self._closing, self._closing and fresh is None
                if fresh is not None:
                    self._held.append(fresh)
            allowed = self._patience() == 0 and not (
                closing and failed
            )  # the end waits for two tries at most
            if self._held and (ends or allowed):
                failed = not self._deliver()
            if ends:
                return

    def _patience(self) -> float | None:
        """Seconds until what is held may be sent; ``None``: nothing is held."""
        now = time.monotonic()
        while self._sent and now - self._sent[0] >= HOUR:
            self._sent.popleft()
        if not self._held:
            return None
        return 0.0 if len(self._sent) < self._per_hour else self._sent[0] + HOUR - now

    def _deliver(self) -> bool:
        self._sent.append(time.monotonic())
        held, lost = list(self._held), self._lost
        text = "\n\n".join(map(str, held)) + (f"\n\nand {lost} more" if lost else "")
        try:
            self._send(held, text)
        except Exception as error:
            if not self._said:
                self._said = True
                self._say(f"{self._where} could not be told: {error!r}")
            return False
        with self._ready:
            self._held.clear()
            self._lost -= lost
        return True

    def _say(self, text: str) -> None:
        logging.getLogger("loopwise.debug").warning("%s", text)
