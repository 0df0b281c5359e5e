"""Lines of the user's code that create modules."""

from __future__ import annotations

import ast
import functools
import inspect
import os
import sysconfig
import textwrap
from collections.abc import Callable, Iterable, Mapping

from torch import nn

INSTALLED = tuple({os.path.realpath(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib")})
"""Folders of classes that are not the user's."""
MOST = 500
"""Largest number of modules whose lines are returned."""
Places = dict[str, tuple[str, int, tuple[int, ...]]]
"""Attribute that a class assigns -> file, line, and the lines of listed members."""


def lines(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """Return file and line (``model.py:12``) for each module that is an attribute of a user's class, or inside one.

    Classes without source, such as those of a notebook cell that was run from a string, have no lines.

    Args:
        modules: prefix and module, parents first.
    """
    by_path = {prefix.removesuffix("."): module for prefix, module in modules}
    places_of, lines = functools.cache(_places), dict[str, str]()
    for path in by_path:
        if len(lines) < MOST and (line := _line(path, by_path, places_of)):
            lines[path] = line
    return lines


def of_tensor(name: str, lines: Mapping[str, str]) -> str:
    """Return the line of the module that a tensor, a parameter or a module belongs to; an empty text if unknown."""
    path = name.rpartition(" ")[2].partition("#")[0]  # ``gradient fc.weight``, ``output fc#1``
    while path:
        if path in lines:
            return lines[path]
        path = path.rpartition(".")[0]
    return ""


def _line(path: str, by_path: Mapping[str, nn.Module], places_of: Callable[[type], Places]) -> str:
    parts = path.split(".")
    for i in reversed(range(len(parts))):
        owner = by_path.get(".".join(parts[:i]))
        if owner is not None and (places := places_of(type(owner))):
            if parts[i] not in places:
                return ""
            file, own, items = places[parts[i]]
            place = parts[i + 1] if i + 1 < len(parts) else ""
            return f"{file}:{items[int(place)] if place.isdigit() and int(place) < len(items) else own}"
    return ""


def _places(kind: type) -> Places:
    """Return the attributes that a class and its bases assign."""
    places: Places = {}
    for base in kind.__mro__:
        if issubclass(base, nn.Module) and base is not nn.Module:
            for name, place in _assigned(base).items():
                places.setdefault(name, place)
    return places


def _assigned(kind: type) -> Places:
    """Return the attributes of ``self`` that the source of a user's class assigns."""
    try:
        file = os.path.realpath(inspect.getsourcefile(kind) or "")
        if not os.path.isfile(file) or file.startswith(INSTALLED) or "site-packages" in file:
            return {}
        source, first = inspect.getsourcelines(kind)
        tree = ast.parse(textwrap.dedent("".join(source)))
    except (OSError, TypeError, SyntaxError):
        return {}
    shown, places = relative(file), Places()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in (t for listed in targets for t in getattr(listed, "elts", [listed])):
            is_attribute = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
            if is_attribute and target.value.id == "self":
                items = tuple(first - 1 + line for line in _items(node.value))
                places.setdefault(target.attr, (shown, first - 1 + node.lineno, items))
    return places


def _items(value: ast.expr) -> list[int]:
    """Return the lines of the members of ``Sequential(a, b)`` and ``ModuleList([a, b])``, if they are written out."""
    if not isinstance(value, ast.Call):
        return []
    members = value.args
    if len(members) == 1 and isinstance(members[0], (ast.List, ast.Tuple)):
        members = members[0].elts
    name = getattr(value.func, "attr", getattr(value.func, "id", ""))
    computed = (ast.Starred, ast.ListComp, ast.GeneratorExp)
    if name not in ("Sequential", "ModuleList") or any(isinstance(member, computed) for member in members):
        return []
    return [member.lineno for member in members]


def relative(file: str) -> str:
    """Return a path relative to the working directory if the file is inside it."""
    try:
        return file.removeprefix(os.getcwd() + os.sep)
    except OSError:  # the working directory was deleted
        return file
