"""The end of a ``Watch``: by ``close``, by an interrupt, by an error at its start, or because nobody holds it any more."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from loopwise.errors import LoopwiseError, StateError
from loopwise.run import RunHandle
from loopwise.warnings import warn

from .capture.capture import Capture
from .capture.writer import Writer
from .loggers.delivery import Deliveries
from .monitors.monitor import Monitors
from .reporting import Reports
from .rules import Finding


class Ending:
    """Release of all that a ``Watch`` holds.  Each part is released once, also if an interrupt ended an earlier attempt.

    Args:
        handle: handle of the run.

    Attributes:
        capture, monitors, writer, loggers, reports: the parts that were started so far.
        at_end: returns the findings about a training that came to its end.
    """

    def __init__(self, handle: RunHandle) -> None:
        self._handle, self._process = handle, os.getpid()
        self.capture: Capture | None = None
        self.monitors: Monitors | None = None
        self.at_end: Callable[[], list[Finding]] | None = None
        self.writer: Writer | None = None
        self.loggers: Deliveries | None = None
        self.reports: Reports | None = None
        self._closing = False
        self._left: list[Callable[[str], None]] = [
            self._close_capture,
            self._close_monitors,
            self._close_writer,
            self._release,
            self._tell,
            self._close_reports,
        ]

    def is_over(self) -> bool:
        """Return whether there is nothing to do: after the end, and in a fork of the process, which is warned once."""
        if self._process != os.getpid() and not self._closing:
            self._closing = True
            warn(
                "loopwise.debug: a Watch does nothing in a fork of the process that made it; make a Watch in the "
                "process that trains",
                stacklevel=3,
            )
        return self._closing

    def close(self, state: str) -> None:
        """Release the parts that are left.

        Args:
            state: ``finished`` or ``failed``.
        """
        self._closing = True
        if self._process != os.getpid():
            return
        errors = []
        while self._left:
            try:
                self._left[0](state)
            except Exception as error:
                errors.append(error)
            del self._left[0]
        if errors:
            raise errors[0]

    def cancel(self, error: BaseException) -> None:
        """Release the parts after an error at the start, and delete the run if it is new.

        Raises:
            StateError: the error is one of the machine's, such as a folder that cannot be written to.
        """
        self._left.remove(self._tell)
        self._left.remove(self._release)
        with contextlib.suppress(Exception):
            self.close("failed")
        with contextlib.suppress(Exception):
            self._handle.cancel()
        if isinstance(error, (OSError, RuntimeError)) and not isinstance(error, LoopwiseError):
            raise StateError(
                f"{error!r} at the start of a Watch",
                "files in the run's folder and a few threads",
                "a folder that cannot be written to, a full disk, or a limit of files or threads of this process",
                "make the folder writable, raise the limit, or close other Watches",
            ) from error

    def dropped(self) -> None:
        """Release the parts of a ``Watch`` that nobody holds any more and that was not closed."""
        if self._closing or self._process != os.getpid() or sys.is_finalizing():
            return
        crashed = sys.exc_info()[0] is not None or getattr(sys, "last_value", None) is not None
        self.close("failed" if crashed else "finished")
        warn(
            "loopwise.debug: a Watch was dropped without close(), and is closed now; call close() when training ends, "
            "or write: with Watch(...) as watch",
            stacklevel=2,
        )

    def _close_capture(self, state: str) -> None:
        if self.capture is not None:
            self.capture.close()

    def _close_monitors(self, state: str) -> None:
        if self.monitors is not None:
            self.monitors.close()
            if self.reports is not None:
                self.reports.collect(self.monitors)
                if state == "finished" and self.at_end is not None:
                    self.reports.collect_at_end(self.at_end)

    def _close_writer(self, state: str) -> None:
        if self.writer is not None:
            self.writer.close()

    def _release(self, state: str) -> None:
        if self.reports is not None:
            failure = "the end of the run could not be written"
            self.reports.attempt(failure, lambda: self._handle.release(state))

    def _tell(self, state: str) -> None:
        if self.reports is not None:
            self.reports.tell()

    def _close_reports(self, state: str) -> None:
        if self.reports is not None:
            self.reports.close()
        elif self.loggers is not None:  # the start failed
            self.loggers.close()
