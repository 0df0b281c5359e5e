"""What is known of a run as such: the facts of ``run.json``, and when something was written last."""

from __future__ import annotations

import datetime
import hashlib
from dataclasses import dataclass
from typing import Any

from loopwise.run import Run

QUIET = 60.0
"""Seconds without a write after which the page of a run that did not end says when the last one was."""


@dataclass(frozen=True)
class Facts:
    """Facts of a run, as the page heads with them."""

    path: str
    info: dict[str, Any]
    written: float
    """Seconds since the epoch of the last write; 0 where storage does not say."""

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def state(self) -> str:
        return str(self.info.get("state", "unknown"))

    def rows(self) -> list[tuple[str, str]]:
        """Names and values for a person."""
        start, end = self.info.get("start"), self.info.get("end")
        found = [("state", self.state)]
        if start:
            found.append(("start", moment(start)))
        last = end or self.written
        if start and last:
            found.append(("duration", span(last - start)))
        found += [("host", str(self.info.get("host", ""))), ("ranks", str(self.info.get("world", "")))]
        return found + [(str(key), str(value)) for key, value in self.info.get("versions", {}).items()]


def facts(path: str) -> Facts:
    """Of a run.

    Raises:
        InputError: there is none, one that cannot be read, or one of a newer schema.
    """
    run = Run.existing(path)
    return Facts(run.path, run.info(), max((when for _, _, when in files(run)), default=0.0))


def files(run: Run) -> list[tuple[str, int, float]]:
    """Name, bytes and time of the last change of all files of a run but the page itself."""
    run.fs.invalidate_cache(run.path)
    found = []
    for name, about in run.fs.find(run.path, detail=True).items():
        if not name.endswith((".html", ".html.new")):
            when = about.get("mtime") or about.get("LastModified") or about.get("created") or 0.0
            found.append(
                (name, int(about.get("size") or 0), when if isinstance(when, float) else when.timestamp())
            )
    return found


def signature(run: Run) -> str:
    """Another text whenever a file of the run changed."""
    return hashlib.sha256(repr(sorted(files(run))).encode()).hexdigest()[:16]


def moment(seconds: float) -> str:
    """A time since the epoch, in words."""
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC"


def span(seconds: float) -> str:
    """A duration in words."""
    if seconds < 60:
        return f"{max(seconds, 0):.1f} s"
    minutes, hours = int(seconds) // 60 % 60, int(seconds) // 3600
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"
