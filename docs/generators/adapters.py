"""Render the table of private torch API and its adapters for ``docs/architecture.md``."""

from __future__ import annotations

import ast
from pathlib import Path

from .docstrings import docstring, sentence
from .rooms import NAMES, ROOT

ADAPTER = "torch_internals.py"


def private_names(node: ast.AST) -> list[str]:
    """Return the private names that a piece of code uses: imports, attributes, and names given to ``getattr``."""
    names: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            names |= {alias.name for alias in inner.names}
        elif isinstance(inner, ast.ImportFrom):
            names |= {f"{inner.module}.{alias.name}" for alias in inner.names}
        elif isinstance(inner, ast.Attribute):
            names.add(ast.unparse(inner) if ast.unparse(inner).startswith("torch.") else f".{inner.attr}")
        elif isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            names |= (
                {f".{inner.value}"} if inner.value.startswith("_") and inner.value.isidentifier() else set()
            )
    private = [name for name in names if any(_private(part) for part in name.split("."))]
    return sorted(
        name for name in private if not any(o != name and o.startswith(f"{name}.") for o in private)
    )


def _private(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def rows(path: Path) -> list[str]:
    """Return a table row for each public function and class of an adapter file."""
    name = path.relative_to(ROOT)
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            used = ", ".join(f"`{each}`" for each in private_names(node))
            purpose = sentence(ast.get_docstring(node) or "")
            found.append(f"| [`{node.name}`](../{name}) | {purpose} | {used} |")
    return found


def render() -> str:
    """Return the table of all adapter files."""
    lines = []
    for part in NAMES:
        for path in sorted((ROOT / part).rglob(ADAPTER)):
            lines += [f"#### {path.relative_to(ROOT)}", "", f"{sentence(docstring(path))}.", ""]
            lines += ["| function | does | private names |", "|---|---|---|", *rows(path), ""]
    return "\n".join(lines)
