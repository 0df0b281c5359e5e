"""Messages and findings for the user: a call of the user's reports each of them once, and the index records it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from loopwise.warnings import warn

from ..rules import Finding

LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}


class Notices:
    """Collects messages where they arise, and warns of them later.

    Args:
        event: writes a message and its step into the index.
    """

    def __init__(self, event: Callable[[str, int], None]) -> None:
        self._event = event
        self._kinds: set[str] = set()
        self._pending: list[str] = []

    def say(self, text: str, step: int, event: bool = True) -> None:
        """Add a message, unless one of the same kind was added; its kind is the text before the first colon.

        Args:
            text: the message.
            step: step of the message; -1 if it belongs to no step.
            event: also write the message into the index.
        """
        kind = text.partition(":")[0]
        if kind in self._kinds:
            return
        self._kinds.add(kind)
        self._pending.append("loopwise.debug: " + (f"step {step}: " if step >= 0 else "") + text)
        if event:
            self._event(text, step)

    def attempt(self, failure: str, action: Callable[[], None]) -> None:
        """Call ``action``, on which training does not depend; add the message ``failure`` if it raises."""
        try:
            action()
        except Exception as error:
            self.say(f"{failure}: {error!r}", -1, event=False)

    def warn(self) -> None:
        """Warn of the collected messages.  A hook must not call this: a warning may be an error there."""
        pending, self._pending = self._pending, []
        for text in pending:
            warn(text, stacklevel=4)


Tell = Callable[[Finding], None]
"""Function that is called with a finding."""


class Findings:
    """All findings of a ``Watch``, and the functions that are called with them on the training thread.

    Args:
        tell: called with each finding, one function or several; default: findings are logged.
        before: called with each finding before all of them; must not raise.
    """

    def __init__(self, tell: Tell | Sequence[Tell] | None, before: Sequence[Tell] = ()) -> None:
        functions = (log,) if tell is None else (tell,) if callable(tell) else tuple(tell)
        self._functions = (*before, *functions)
        self._pending: list[Finding] = []
        self._told_at_once: list[Finding] = []
        self.all: list[Finding] = []

    def add(self, findings: list[Finding]) -> None:
        """Add findings, except for those that ``tell_at_once`` was called with before."""
        if not findings:
            return
        known = {(finding.rule, finding.tensors) for finding in self._told_at_once}
        new = [finding for finding in findings if (finding.rule, finding.tensors) not in known]
        self._pending += new
        self.all += new

    def tell_at_once(self, finding: Finding) -> None:
        """Add a finding and tell it on the calling thread."""
        self._told_at_once.append(finding)
        self.all.append(finding)
        self._tell(finding)

    def tell(self) -> None:
        """Call the user's functions with the findings since the last call.  Their errors are raised here."""
        while self._pending:
            self._tell(self._pending.pop(0))

    def close(self) -> None:
        """Close the functions that send later, which waits a limited time for their messages."""
        for function in self._functions:
            if callable(close := getattr(function, "close", None)):
                close()

    def _tell(self, finding: Finding) -> None:
        for function in self._functions:
            function(finding)


def log(finding: Finding) -> None:
    """Log a finding under ``loopwise.debug``."""
    logging.getLogger("loopwise.debug").log(LEVELS[finding.severity], "%s", finding)
