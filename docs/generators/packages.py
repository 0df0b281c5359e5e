"""Render the table of packages for ``docs/architecture.md``: what each one does and which ones it imports."""

from __future__ import annotations

from .docstrings import docstring, sentence
from .rooms import ROOT, graph, layers

TITLES = {
    "sift": "sift",
    "compile": "compile",
    "debug": "debug",
    "tune": "tune",
    "feed": "feed",
    "report": "report",
    "base": "base",
}


def purpose(part: str, room: str) -> str:
    """Return the first sentence of a package's or module's docstring."""
    folder = ROOT / part / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return sentence(docstring(path)) if path.exists() else ""


def link(part: str, room: str) -> str:
    """Return a Markdown link to a package's folder or a module's file."""
    name = f"{room}/" if (ROOT / part / room).is_dir() else f"{room}.py"
    return f"[{name}](../{part}/{name})"


def table(part: str) -> str:
    """Return the table of one part, the lowest layer first."""
    edges = graph(part)
    lines = ["| layer | package or module | does | imports |", "|---|---|---|---|"]
    for number, rooms in enumerate(layers(edges)):
        for room in rooms:
            if not room.startswith("__"):
                below = ", ".join(f"`{name}`" for name in sorted(edges[room]) if not name.startswith("__"))
                lines.append(f"| {number} | {link(part, room)} | {purpose(part, room)} | {below} |")
    return "\n".join(lines)


def render() -> str:
    """Return a table for each part."""
    return "\n".join(f"#### {part}\n\n{table(part)}\n" for part in TITLES)
