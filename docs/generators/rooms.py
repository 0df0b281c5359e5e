"""Compute the packages of each part, their imports of each other and their layers.

A room is a folder of a part, or a file directly in the part's folder.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = {
    "base": "loopwise",
    "sift": "loopwise.sift",
    "compile": "loopwise.compile",
    "debug": "loopwise.debug",
    "tune": "loopwise.tune",
    "feed": "loopwise.feed",
    "report": "loopwise.report",
}
"""Folder -> the package it is imported as."""


def room_of(module: str, part: str) -> str:
    """Return the room of a module, which is given by its dotted name inside of its part."""
    return module.partition(".")[0] if module else "__init__"


def imported(path: Path, source: str) -> Iterator[str]:
    """Yield the dotted names of all modules that a file of a part imports, relative ones made absolute.

    ``from . import name`` yields the package and the package with the name behind it.
    """
    relative = path.relative_to(ROOT)
    package = [*NAMES[relative.parts[0]].split("."), *relative.parts[1:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@functools.cache
def graph(part: str) -> dict[str, set[str]]:
    """Return for each room of a part the rooms that it imports; the callers share the result."""
    folder, package = ROOT / part, NAMES[part]
    files = {path: path.relative_to(folder).with_suffix("").parts for path in sorted(folder.rglob("*.py"))}
    rooms = {parts[0] for parts in files.values()}
    edges: dict[str, set[str]] = {room: set() for room in sorted(rooms)}
    for path, parts in files.items():
        for name in imported(path, path.read_text()):
            if name.startswith(f"{package}."):
                room = name[len(package) + 1 :].partition(".")[0]
                if room in rooms and room != parts[0]:
                    edges[parts[0]].add(room)
    return edges


def layers(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the rooms by layer, the lowest first; rooms in a circle are missing."""
    placed: dict[str, int] = {}
    left = dict(edges)
    while free := [room for room, below in left.items() if below <= placed.keys()]:
        for room in free:
            placed[room] = 1 + max((placed[other] for other in left[room]), default=-1)
        for room in free:
            del left[room]
    height = 1 + max(placed.values(), default=-1)
    return [sorted(room for room, layer in placed.items() if layer == number) for number in range(height)]
