"""Table of the generated pages, and the functions that write them and find outdated ones.

A page is generated as a whole, or it is a hand-written page with generated parts between the comments
``<!-- generated: name -->`` and ``<!-- end of name -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from . import adapters, benchmarks, formats, packages, picture, reference, rules

DOCS = Path(__file__).parents[1]
WHOLE: dict[str, Callable[[], str]] = {
    "architecture.svg": picture.render,
    "benchmarks.md": benchmarks.render,
    "formats.md": formats.render,
    "rules.md": rules.render,
    **reference.PAGES,
}
"""Page -> the function that returns its text."""
PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "architecture.md": {"packages": packages.render, "adapters": adapters.render},
}
"""Page -> name of a generated part -> the function that returns its text."""


def filled(text: str, parts: dict[str, Callable[[], str]]) -> str:
    """Return a page's text with its generated parts renewed.

    Raises:
        ValueError: the page lacks the comments around a part.
    """
    for name, render in parts.items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end of {name} -->"
        pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"the comments {begin.strip()} and {end} are missing")
        generated = render()
        text = pattern.sub(lambda match, new=generated: f"{match[1]}{new}{match[2]}", text)
    return text


def current() -> dict[Path, str]:
    """Return the text that each generated page should have."""
    whole = {DOCS / name: render() for name, render in WHOLE.items()}
    partly = {DOCS / name: filled((DOCS / name).read_text(), parts) for name, parts in PARTS.items()}
    return whole | partly


def outdated() -> list[Path]:
    """Return the pages whose text differs from what would be generated now."""
    return [path for path, text in current().items() if not path.exists() or path.read_text() != text]


def write() -> list[Path]:
    """Write the outdated pages and return their paths."""
    texts = current()
    paths = outdated()
    for path in paths:
        path.write_text(texts[path])
    return paths
