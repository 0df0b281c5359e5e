"""Where in the user's code a module is made."""

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
"""Folders whose classes are not the user's."""
MOST = 500
"""Modules whose lines are kept."""
Places = dict[str, tuple[str, int, tuple[int, ...]]]
"""Attributes that a class of the user's assigns: file, line, and lines of what is listed there."""


def lines(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, str]:
    """File and line (``model.py:12``) for each module that is an attribute of a class of the user's, or inside one.

    Where a class has no source, as in a notebook cell that was run from a string, there are none for it.

    Args:
        modules: prefix and module, parents first.
    """
    known = {prefix.removesuffix("."): module for prefix, module in modules}
    places_of, found = functools.cache(_places), dict[str, str]()
    for path in known:
        if len(found) < MOST and (line := _line(path, known, places_of)):
            found[path] = line
    return found


def of_tensor(name: str, found: Mapping[str, str]) -> str:
    """The line of the module that a tensor, a parameter or a module of that name is of."""
    path = name.rpartition(" ")[2].partition("#")[0]  # ``gradient fc.weight``, ``output fc#1``
    while path:
        if path in found:
            return found[path]
        path = path.rpartition(".")[0]
    return ""


def _line(path: str, known: Mapping[str, nn.Module], places_of: Callable[[type], Places]) -> str:
    parts = path.split(".")
    for i in reversed(range(len(parts))):
        owner = known.get(".".join(parts[:i]))
        if owner is not None and (places := places_of(type(owner))):
            if parts[i] not in places:
                return ""
            file, own, items = places[parts[i]]
            place = parts[i + 1] if i + 1 < len(parts) else ""
            return f"{file}:{items[int(place)] if place.isdigit() and int(place) < len(items) else own}"
    return ""


def _places(kind: type) -> Places:
    found: Places = {}
    for each in kind.__mro__:
        if issubclass(each, nn.Module) and each is not nn.Module:
            for name, place in _assigned(each).items():
                found.setdefault(name, place)
    return found


def _assigned(kind: type) -> Places:
    try:
        file = os.path.realpath(inspect.getsourcefile(kind) or "")
        if not os.path.isfile(file) or file.startswith(INSTALLED) or "site-packages" in file:
            return {}
        source, first = inspect.getsourcelines(kind)
        tree = ast.parse(textwrap.dedent("".join(source)))
    except (OSError, TypeError, SyntaxError):
        return {}
    shown, found = relative(file), Places()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in (t for each in targets for t in getattr(each, "elts", [each])):
            is_own = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name)
            if is_own and target.value.id == "self":
                items = tuple(first - 1 + line for line in _items(node.value))
                found.setdefault(target.attr, (shown, first - 1 + node.lineno, items))
    return found


def _items(value: ast.expr) -> list[int]:
    """Lines of the members of ``Sequential(a, b)`` and ``ModuleList([a, b])``, where they are written out."""
    if not isinstance(value, ast.Call):
        return []
    listed = value.args
    if len(listed) == 1 and isinstance(listed[0], (ast.List, ast.Tuple)):
        listed = listed[0].elts
    name = getattr(value.func, "attr", getattr(value.func, "id", ""))
    plain = name in ("Sequential", "ModuleList") and not any(isinstance(a, ast.Starred) for a in listed)
    comprehensions = (ast.ListComp, ast.GeneratorExp)
    return (
        [a.lineno for a in listed] if plain and not any(isinstance(a, comprehensions) for a in listed) else []
    )


def relative(file: str) -> str:
    """From the working directory, where the file is in there."""
    try:
        return file.removeprefix(os.getcwd() + os.sep)
    except OSError:  # it was deleted
        return file
