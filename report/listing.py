"""List of the runs in a folder: state, last loss and findings of each, and links to its page and to comparisons."""

from __future__ import annotations

import glob
import inspect
import time
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any
from urllib.parse import quote, unquote

import fsspec

from loopwise.errors import LoopwiseError
from loopwise.run import Run

from .facts import facts, signature
from .page import listed
from .sections import CELL, GROUP
from .source import Page, Source

PATIENCE = 3.0
"""Seconds of reading runs before a list is shown; the numbers of the other runs follow."""
KEPT = 16
"""Largest number of pages whose state is kept."""

Row = dict[str, Any]
"""Values of a run by column."""


class Folder(Page):
    """List of the runs in a folder, and their pages.

    The list is at ``/``, the page of a run at ``/<name>/``, and a comparison at ``/<name>/<name>/`` and so on.  Names are
    those of the subfolders that hold a run: no path leads elsewhere.

    Args:
        folder: folder or fsspec URL whose subfolders are runs.
    """

    def __init__(self, folder: str) -> None:
        self._url = folder.rstrip("/")
        self._fs, self._folder = fsspec.core.url_to_fs(self._url)
        self._rows: dict[str, tuple[str, Row]] = {}
        """Name -> signature of the run and its row."""
        self._pages: dict[tuple[str, ...], Source] = {}
        self._unread = 0
        super().__init__()

    def names(self) -> list[str]:
        """Return the names of the subfolders that hold a run."""
        self._fs.invalidate_cache()
        files = self._fs.glob(f"{glob.escape(self._folder)}/*/run.json")
        return sorted(file.split("/")[-2] for file in files)

    def find(self, path: str) -> Page | None:
        """Return the list, the page of a run, or a comparison of several runs; ``None`` if there is no such run."""
        if path == "/":
            return self
        parts = path.removeprefix("/").removesuffix("/").split("/")
        names = tuple(unquote(part, errors="surrogateescape") for part in parts)
        if len(set(names)) < len(names) or not set(names) <= set(self.names()):
            return None
        with self._lock:
            page = self._pages.pop(names, None)
        if page is None:
            first, *others = (f"{self._url}/{name}" for name in names)
            page = Source(first, others, back="../" * len(names))
        with self._lock:
            self._pages[names] = page
            while len(self._pages) > KEPT:
                del self._pages[next(iter(self._pages))]
        return page

    def mark(self) -> str:
        """Return a text that changes with the runs, and as long as some are not read."""
        marks = [f"{name} {self._signature(name)}" for name in self.names()]
        return "\n".join([*marks, str(time.monotonic() if self._unread else 0)])

    def make(self) -> dict[str, Any]:
        """Read the runs that changed, as far as time allows, and return the state of the list."""
        start, rows = time.monotonic(), []
        self._unread = 0
        for name in self.names():
            now, (before, row) = self._signature(name), self._rows.get(name, ("", {}))
            if now != before and time.monotonic() - start < PATIENCE:
                row = overview(f"{self._url}/{name}")
                self._rows[name] = now, row
            elif now != before:
                self._unread += 1
            rows.append((name, f"{quote(name, safe='', errors='surrogateescape')}/", row))
        rows.sort(key=lambda row: row[2].get("start") or "", reverse=True)
        return listed(self._url, rows, self._unread)

    def _signature(self, name: str) -> str:
        try:
            run = Run.existing(f"{self._url}/{name}")
            return f"{signature(run)} {run.state()}"
        except (LoopwiseError, OSError) as error:
            return f"{type(error).__name__}: {error}"


def overview(path: str) -> Row:
    """Return what a list tells of a run: its state, start and duration, and what the providers of sections add."""
    try:
        known = facts(path)
    except (LoopwiseError, OSError) as error:
        return {"state": "unreadable", "note": str(error).strip().partition("\n")[0]}
    rows = dict(known.rows())
    row: Row = {"state": known.state, "start": rows.get("start"), "duration": rows.get("duration")}
    for function in _providers():
        try:
            row |= {str(key): value for key, value in function(path).items() if isinstance(value, CELL)}
        except Exception as error:
            row["note"] = f"{type(error).__name__}: {error}"
    return row


def _providers() -> Iterator[Any]:
    """Yield the functions ``overview`` beside the providers of sections."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            function = getattr(inspect.getmodule(entry.load()), "overview", None)
        except Exception:  # its sections are missing as well, which the page of a run tells
            continue
        if callable(function):
            yield function
