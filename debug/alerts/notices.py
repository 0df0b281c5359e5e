"""What has to be said: each kind of thing once, from the user's own call, and in the index."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence

from ..rules import Finding

LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}


class Notices:
    """Collects texts where they arise and warns of them later.

    Args:
        event: writes a text and its step into the index.
    """

    def __init__(self, event: Callable[[str, int], None]) -> None:
        self._event = event
        self._kinds: set[str] = set()
        self._waiting: list[str] = []

    def say(self, text: str, step: int, event: bool = True) -> None:
        """Keep a text to be warned of; its kind is what stands before the first colon.

        Args:
            text: what happened.
            step: in which step; -1: in none.
            event: note it in the index as well.
        """
        kind = text.partition(":")[0]
        if kind in self._kinds:
            return
        self._kinds.add(kind)
        self._waiting.append(
            f"loopwise.debug: step {step}: {text}" if step >= 0 else f"loopwise.debug: {text}"
        )
        if event:
            self._event(text, step)

    def attempt(self, what: str, action: Callable[[], None]) -> None:
        """Do something that training does not depend on; ``what`` is said if it fails."""
        try:
            action()
        except Exception as error:
            self.say(f"{what}: {error!r}", -1, event=False)

    def warn(self) -> None:
        """Warn of what was kept: not inside a hook, where it could end a forward pass."""
        waiting, self._waiting = self._waiting, []
        for text in waiting:
            warnings.warn(text, RuntimeWarning, stacklevel=4)


Tell = Callable[[Finding], None]


class Findings:
    """What rules found, told on the training thread.

    Args:
        tell: called with each, one function or several; default: it is logged.
    """

    def __init__(self, tell: Tell | Sequence[Tell] | None) -> None:
        self._tellers = (log,) if tell is None else (tell,) if callable(tell) else tuple(tell)
        self._waiting: list[Finding] = []
        self._at_once: list[Finding] = []
        self.all: list[Finding] = []

    def add(self, found: list[Finding]) -> None:
        """Take in what was found; what was told at once is known already."""
        known = {(each.rule, each.tensors) for each in self._at_once}
        fresh = [each for each in found if (each.rule, each.tensors) not in known]
        self._waiting += fresh
        self.all += fresh

    def tell_at_once(self, finding: Finding) -> None:
        self._at_once.append(finding)
        self.all.append(finding)
        self._tell(finding)

    def tell(self) -> None:
        """Tell what was added since; the user's function may raise, which is the user's wish."""
        while self._waiting:
            self._tell(self._waiting.pop(0))

    def close(self) -> None:
        """Have what is still on its way delivered, for a limited time."""
        for tell in self._tellers:
            if callable(close := getattr(tell, "close", None)):
                close()

    def _tell(self, finding: Finding) -> None:
        for tell in self._tellers:
            tell(finding)


def log(finding: Finding) -> None:
    """Log a finding under ``loopwise.debug``."""
    logging.getLogger("loopwise.debug").log(LEVELS[finding.severity], "%s", finding)
