"""Render ``docs/reference/<part>.md``: a table of the public names of a part, and their docstrings in the site.

Public names of a module are those in its ``__all__``, or else those that it imports as themselves
(``from .loader import Loader as Loader``), or else those that it defines.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from pathlib import Path

from .docstrings import docstring, sentence
from .rooms import NAMES, ROOT

MODULES: dict[str, dict[str, str]] = {
    "sift": {
        "loopwise.sift": "",
        "loopwise.sift.lightning": "SiftingCallback",
        "loopwise.sift.transformers": "SiftingTrainerMixin",
    },
    "compile": {
        "loopwise.compile": "",
        "loopwise.compile.lightning": "CompilingCallback",
        "loopwise.compile.transformers": "CompilingTrainerMixin",
    },
    "debug": {
        "loopwise.debug": "",
        "loopwise.debug.lightning": "WatchCallback",
        "loopwise.debug.transformers": "WatchCallback",
        "loopwise.debug.loggers": "",
        "loopwise.debug.alerts.destinations": "log webhook email",
        "loopwise.debug.nan": "load replay",
        "loopwise.debug.read.compare": "compare",
    },
    "tune": {"loopwise.tune": ""},
    "feed": {
        "loopwise.feed": "",
        "loopwise.feed.accelerate": "",
        "loopwise.feed.transformers": "FeedingTrainerMixin",
    },
    "report": {"loopwise.report": "", "loopwise.sections": ""},
    "base": {
        "loopwise.run": "Run read",
        "loopwise.schedule": "every at between",
        "loopwise.errors": "",
        "loopwise.warnings": "LoopwiseWarning",
    },
}
"""Part -> its public modules -> their names, or an empty text for all public ones."""
NOTE = """<!-- This page is generated from docstrings by python -m docs.generators. -->

The site shows the docstring of each name below its table; elsewhere, follow the links to the sources."""


def file_of(module: str) -> Path:
    """Return the file of a module of the library, by its dotted name."""
    part, package = next(
        (part, package) for part, package in reversed(NAMES.items()) if f"{module}.".startswith(f"{package}.")
    )
    place = ROOT.joinpath(part, *module[len(package) :].split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


@functools.cache
def tree(path: Path) -> ast.Module:
    """Return the parsed file."""
    return ast.parse(path.read_text())


def imports(module: str) -> dict[str, tuple[str, str, bool]]:
    """Return what a module imports, by its name there: module, name in it, and whether it is imported as itself."""
    package = module.split(".") if file_of(module).name == "__init__.py" else module.split(".")[:-1]
    found = {}
    for node in ast.walk(tree(file_of(module))):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                found[alias.asname or alias.name] = source, alias.name, alias.asname == alias.name
    return found


def defined(module: str) -> dict[str, ast.AST]:
    """Return the classes, functions and constants that a module defines itself."""
    nodes: dict[str, ast.AST] = {}
    for node in tree(file_of(module)).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            nodes[node.name] = node
        for target in getattr(node, "targets", []) or [getattr(node, "target", None)]:
            if isinstance(target, ast.Name):
                nodes[target.id] = node
    return nodes


def public(module: str) -> list[str]:
    """Return the public names of a module."""
    own = defined(module)
    if "__all__" in own:
        return sorted(ast.literal_eval(own["__all__"].value))  # type: ignore[attr-defined]
    exported = [name for name, (*_, itself) in imports(module).items() if itself]
    listed = exported or [
        name for name, node in own.items() if isinstance(node, (ast.ClassDef, ast.FunctionDef))
    ]
    return sorted(name for name in listed if not name.startswith("_"))


def origin(module: str, name: str) -> tuple[str, ast.AST]:
    """Return the module that defines a name, and its definition there.

    Raises:
        ValueError: the name is neither defined nor imported.
    """
    if node := defined(module).get(name):
        return module, node
    if name not in imports(module):
        raise ValueError(f"{module} has no name {name}")
    source, inner, _ = imports(module)[name]
    return origin(source, inner)


def row(module: str, name: str) -> str:
    """Return the table row of a name: its file, and the first sentence about it."""
    source, node = origin(module, name)
    path = file_of(source)
    text = ast.get_docstring(node) or "" if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else ""
    if not text:  # a constant: the text below it
        body = tree(path).body
        below = body[body.index(node) + 1]  # type: ignore[arg-type]
        text = ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
    return f"| `{name}` | {sentence(text)} | [{path.relative_to(ROOT)}](../../{path.relative_to(ROOT)}) |"


def render(part: str) -> str:
    """Return the page of a part."""
    lines = [f"# {NAMES[part]}: reference", "", NOTE, ""]
    for module, names in MODULES[part].items():
        listed = names.split() or public(module)
        lines += [f"## {module}", "", f"{sentence(docstring(file_of(module)))}.", ""]
        lines += ["| name | meaning | source |", "|---|---|---|", *(row(module, name) for name in listed), ""]
        for name in listed:
            lines += [f"::: {module}.{name}", ""]
    return "\n".join(lines).rstrip() + "\n"


PAGES: dict[str, Callable[[], str]] = {
    f"reference/{part}.md": functools.partial(render, part) for part in MODULES
}
"""Page -> the function that returns its text."""
