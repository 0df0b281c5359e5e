"""Hooks of mkdocs: pages for the files of the repository to which the documents link, so that no link leaves the site.

Links are written for the repository, where ``docs/sift.md`` links to ``../sift/loader.py``.  So every page is known to
mkdocs by its path in the repository, and each file or folder outside of ``docs/`` that a page links to gets a page, too.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s#:]+)(?:#[^)\s]*)?\)")
LANGUAGES = {".c": "c", ".json": "json", ".md": "markdown", ".py": "python", ".toml": "toml", ".yaml": "yaml"}
UNSEARCHED = "---\nsearch: {exclude: true}\n---\n"


class Tree(Files):
    """Pages by their path in the repository; a folder is found by the name of its README, a file by its own."""

    def get_file_from_path(self, path: str) -> File | None:
        find = super().get_file_from_path
        return find(path) or find(f"{path}/README.md") or find(f"{path}.md")


def on_files(files: Files, config: Any) -> Files:
    """Name the pages by their paths in the repository, and add pages for what they link to."""
    pages = Tree([])
    for file in files:
        if file.src_dir == config.docs_dir:
            _ = file.dest_uri, file.abs_src_path  # they are computed from the path once
            file.src_uri = f"docs/{file.src_uri}"
        pages.append(file)
    queue = [file for file in pages if file.is_documentation_page()]
    for file in queue:
        for target in linked(file.src_uri, file.content_string):
            if pages.get_file_from_path(target) is None and (ROOT / target).exists():
                queue.append(page(target, config))
                pages.append(queue[-1])
    return pages


def linked(path: str, text: str) -> list[str]:
    """Return the paths in the repository to which a page at ``path`` links."""
    here = posixpath.dirname(path)
    return sorted({posixpath.normpath(posixpath.join(here, target)) for target in LINK.findall(text)})


def page(path: str, config: Any) -> File:
    """Return the page of a file or a folder of the repository: Markdown as it is, code as a block."""
    place = ROOT / path
    if place.is_dir():
        name, text = f"{path}/README.md", folder(place)
    elif place.suffix == ".md":
        name, text = path, place.read_text()
    else:
        language = LANGUAGES.get(place.suffix, "text")
        name, text = f"{path}.md", f"# `{path}`\n\n````{language}\n{place.read_text()}````\n"
    made = File.generated(config, name, content=text if place.parent == ROOT else UNSEARCHED + text)
    made.dest_uri = f"source/{made.dest_uri}"
    return made


def folder(place: Path) -> str:
    """Return the README of a folder, or a list of what is in it."""
    if (place / "README.md").exists():
        return (place / "README.md").read_text()
    names = sorted(name for name in os.listdir(place) if not name.startswith((".", "__pycache__")))
    return "".join([f"# `{place.relative_to(ROOT)}`\n\n", *(f"- [{name}]({name})\n" for name in names)])
