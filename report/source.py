"""State of a page for a server: made again only after files of the run changed."""

from __future__ import annotations

import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from loopwise.run import Run, location

from .facts import signature
from .page import Runs, html, locations, state

PAUSE = 2.0
"""Least number of seconds between two listings of the run's files."""
SHARE = 4
"""Pause before the sections are made again, in multiples of the time that making them took.

The training on the same machine has the processor to itself in the pause."""


class Page(ABC):
    """State of a page, and its bytes as HTML and as JSON, which all connections share."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0.0
        self._mark = ""
        self._state: dict[str, Any] = {}
        self._encoded: dict[str, tuple[str, bytes]] = {}
        """Kind of answer -> etag of the state and bytes."""
        self.made = 0
        """Number of times that the state was made."""
        self.state()
        self._next = 0.0  # the first state took long because of imports

    @abstractmethod
    def mark(self) -> str:
        """Return a text that changes if the state has to be made again."""

    @abstractmethod
    def make(self) -> dict[str, Any]:
        """Return a new state."""

    def find(self, path: str) -> Page | None:
        """Return the page at a path that ends with ``/``; ``None`` if there is no such page."""
        return self if path == "/" else None

    def state(self) -> dict[str, Any]:
        """Return the state of the page, as ``loopwise.report.page`` defines it."""
        with self._lock:
            start = time.monotonic()
            if start >= self._next:
                now = self.mark()
                if now != self._mark:
                    self._state = self.make()
                    self._mark, self.made = now, self.made + 1
                spent = time.monotonic() - start
                self._next = start + spent + max(PAUSE, SHARE * spent)
            return self._state

    def page(self) -> tuple[bytes, str]:
        """Return the page as HTML, and the etag of its state."""
        return self._encode("page", lambda state: html(state, live=True))

    def sections(self) -> tuple[bytes, str]:
        """Return the state as JSON, and its etag."""
        return self._encode("sections", json.dumps)

    def _encode(self, kind: str, make: Callable[[dict[str, Any]], str]) -> tuple[bytes, str]:
        state = self.state()
        with self._lock:
            etag, data = self._encoded.get(kind, ("", b""))
            if etag != state["etag"]:
                etag, data = self._encoded[kind] = state["etag"], make(state).encode(errors="replace")
            return data, etag


class Source(Page):
    """State of a run's page.

    Args:
        run: folder or fsspec URL of the run, or a ``Run``.
        compare: another run, or several, to compare with.
        back: address of the list of runs, to which the page links; default: no link.

    Raises:
        InputError: the folder holds no run, or one that a newer version wrote.
    """

    def __init__(self, run: str | os.PathLike[str] | Run, compare: Runs = (), back: str = "") -> None:
        self._paths, self._back = [location(run), *locations(compare)], back
        self._runs = [Run.existing(path) for path in self._paths]
        super().__init__()

    def mark(self) -> str:
        """Return a text that changes with the files and the states of the runs."""
        return "".join(f"{signature(run)} {run.state()} " for run in self._runs)

    def make(self) -> dict[str, Any]:
        """Read the runs and return the state of their page."""
        return state(*self._paths, back=self._back)
