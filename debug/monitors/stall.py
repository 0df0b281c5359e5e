"""Monitor that reports a stall while training makes no step for a long time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from loopwise.validate import positive_number

from ..rules import RULES, Finding, Observation
from ..rules.engine import make_finding
from .monitor import Scalars


class StallMonitor:
    """Watches the time between steps, on a thread of its own.

    Args:
        tell: called on that thread with a `Finding`, once for each stall.
        seconds: time without a new step that counts as a stall; default: that of the rule ``stalled_training``.
        clock: returns the time in seconds.
        wait: waits for an event for a number of seconds, and returns whether the event was set.

    Raises:
        InputError: ``seconds`` is not above 0.
    """

    def __init__(
        self,
        tell: Callable[[Finding], None],
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        default = RULES["stalled_training"].thresholds["seconds"]
        self._seconds = positive_number("seconds", default if seconds is None else seconds, "time", default)
        self._tell, self._clock, self._wait = tell, clock, wait
        self._end = threading.Event()
        self._last = clock(), 0, "train"
        self._thread = threading.Thread(target=self._watch, name="loopwise-debug-stall", daemon=True)
        self._thread.start()

    def begin(self, step: int, mode: str) -> None:
        self._last = self._clock(), step, mode

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        """Do nothing: the next step begins at once."""

    def findings(self) -> list[Finding]:
        return []  # ``tell`` was called with all findings

    def close(self) -> None:
        self._end.set()
        if self._thread is not threading.current_thread():
            self._thread.join(10.0)

    def _watch(self) -> None:
        reported = -1.0
        while True:
            begun, step, mode = self._last
            rest = begun + self._seconds - self._clock()
            if rest <= 0 and begun != reported:
                reported = begun
                what = f"no step has come for {self._seconds:.0f} seconds since step {step} began"
                self._tell(make_finding("stalled_training", Observation(what), step, mode))
            if self._wait(self._end, rest if rest > 0 else self._seconds):
                return
