"""Progress of a search: a line for each candidate, if the search lasts longer than a few seconds."""

from __future__ import annotations

import logging
import sys

from loopwise.ranks import is_main

from ..plan import Plan
from .deadline import Deadline

SILENT = 3.0
"""Seconds that a search may last without a line."""
LOG = logging.getLogger("loopwise.compile")


class Progress:
    """Lines about a search, at level INFO of the logger ``loopwise.compile``, or on a terminal if that is off.

    Ranks other than 0 say nothing.

    Args:
        deadline: time of the search.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._waiting: list[str] = []
        self._speaks = False

    def begin(self, plan: Plan, estimate: float) -> None:
        """Say that a candidate is begun, which takes about ``estimate`` seconds; 0: unknown."""
        deadline = self._deadline
        about = f", about {estimate:.0f} s" if estimate >= 1 else ""
        self._waiting.append(
            f"trying {plan}{about} ({deadline.elapsed:.0f} s of at most {deadline.limit:.0f} s)"
        )
        # a compilation by Inductor takes longer than the search may be silent
        self._speaks |= plan.graph == "inductor" or deadline.elapsed + estimate > SILENT
        self._flush()

    def end(self, plan: Plan) -> None:
        """Say which plan won."""
        self._waiting.append(f"chosen: {plan} ({self._deadline.elapsed:.0f} s)")
        self._flush()

    def _flush(self) -> None:
        if not self._speaks:
            return
        for line in self._waiting:
            _say(line)
        self._waiting.clear()


def _say(line: str) -> None:
    """Log a line, or print it on a terminal if nobody listens to the log."""
    if not is_main():
        return
    if LOG.isEnabledFor(logging.INFO) and LOG.hasHandlers():
        LOG.info("%s", line)
    elif sys.stderr is not None and sys.stderr.isatty():
        print(f"loopwise.compile: {line}", file=sys.stderr, flush=True)
