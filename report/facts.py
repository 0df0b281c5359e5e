"""General facts of a run: the contents of ``run.json``, and the time of the last write."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from typing import Any

from loopwise.run import Run

QUIET = 60.0
"""Seconds without a write after which the page of an unfinished run shows the time of the last write."""


@dataclass(frozen=True)
class Facts:
    """Facts of a run that the head of its page shows."""

    path: str
    info: dict[str, Any]
    """Contents of ``run.json``."""
    state: str
    """``running``, ``finished``, ``failed``, or ``ended`` if the process is gone."""
    written: float
    """Time of the last write in seconds since the epoch; 0 if the storage does not tell it."""

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def seconds(self) -> float | None:
        """Seconds from the start to the end, or to the last write before it; ``None`` if one of them is unknown."""
        start, last = self.info.get("start"), self.info.get("end") or self.written
        return last - start if start and last else None

    def rows(self) -> list[tuple[str, str]]:
        """Return names and values as texts for a reader."""
        start = self.info.get("start")
        rows = [("state", self.state)]
        if start:
            rows.append(("start", moment(start)))
        if self.seconds is not None:
            rows.append(("duration", span(self.seconds)))
        rows += [("host", str(self.info.get("host", ""))), ("ranks", str(self.info.get("world", "")))]
        return rows + [(str(key), str(value)) for key, value in self.info.get("versions", {}).items()]


def facts(path: str) -> Facts:
    """Read the facts of the run in a folder or at a URL.

    Raises:
        InputError: the folder holds no readable run, or one of a newer schema.
    """
    run = Run.existing(path)
    return Facts(run.path, run.info(), run.state(), max((time for _, _, time in files(run)), default=0.0))


def files(run: Run) -> list[tuple[str, int, float]]:
    """Return path, bytes and last change (seconds since the epoch) of every file of a run except its page."""
    run.fs.invalidate_cache(run.path)
    rows = []
    for name, details in run.fs.find(run.path, detail=True).items():
        if not name.endswith((".html", ".tmp")):
            time = details.get("mtime") or details.get("LastModified") or details.get("created") or 0.0
            seconds = time if isinstance(time, float) else time.timestamp()
            rows.append((name, int(details.get("size") or 0), seconds))
    return rows


def signature(run: Run) -> str:
    """Return a digest that changes if any file of the run changes."""
    return hashlib.sha256(repr(sorted(files(run))).encode()).hexdigest()[:16]


def moment(seconds: float) -> str:
    """Format a time, given in seconds since the epoch."""
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """Format a duration."""
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s"
    minutes, hours = int(seconds) // 60 % 60, int(seconds) // 3600
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"
