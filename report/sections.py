"""What the page shows of a run: sections, each by a part of Loopwise or by a package of somebody else.

A provider is a function ``sections(path: str, other: str | None = None) -> list[dict]`` under the entry point group
``loopwise.sections``.  It reads the run folder ``path`` (a folder or fsspec URL, perhaps of a run that goes on), and
where ``other`` is given compares the two.  It returns no section that has nothing to say.  One that raises is named
in the page, and the others are shown.

A section is ``{"id": "findings", "title": "Findings", "order": 20, "blocks": [...]}``.  The id consists of small letters,
digits and ``-``; sections are shown by order, and blocks of an equal id come together.  A block is one of

``{"kind": "text", "text": str}``
    A paragraph.
``{"kind": "table", "title": str, "columns": [str, ...], "rows": [[cell, ...], ...]}``
    Cells are texts, numbers, booleans or ``None``.
``{"kind": "plot", "title": str, "describe": str, "data": [trace, ...], "layout": {...}}``
    Traces and layout as Plotly has them, NumPy arrays in them allowed (they travel as 32-bit numbers; what is not finite
    is a gap).  ``describe`` says in words what is to be seen.  Colours come from the page, light or dark: a
    trace's ``meta: {"color": c}`` chooses one, by its number or ``critical``, ``warning``, ``info`` or ``muted``; a heat map
    with ``zmid`` gets colours of two signs.
``{"kind": "choice", "title": str, "label": str, "plots": [plot, ...]}``
    Plots of which one is seen at a time, chosen by title.
``{"kind": "finding", "severity": "info" | "warning" | "critical", "rule": str, "step": int, "what": str, "advice": str,
"line": str, "plot": plot or None}``
    Something that is wrong; ``line`` names a place in the user's code, or is empty.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loopwise.errors import InputError

GROUP = "loopwise.sections"
SEVERITIES = ("info", "warning", "critical")
_PLOT = {"title": str, "describe": str, "data": list, "layout": dict}
KINDS: dict[str, dict[str, Any]] = {
    "text": {"text": str},
    "table": {"title": str, "columns": list, "rows": list},
    "plot": _PLOT,
    "choice": {"title": str, "label": str, "plots": list},
    "finding": {
        "severity": str,
        "rule": str,
        "step": int,
        "what": str,
        "advice": str,
        "line": str,
        "plot": (dict, type(None)),
    },
}
"""Kind of a block -> its keys and their types."""
SAME = "same"
"""In place of a trace's ``x`` that is that of the plot's first trace."""
CELL = (str, int, float, bool, type(None), np.generic)


@dataclass(frozen=True)
class Section:
    """A section that can be shown."""

    id: str
    title: str
    order: float
    blocks: list[dict[str, Any]]


def collect(path: str, other: str | None = None) -> tuple[list[Section], list[str]]:
    """Sections of all providers in their order, and what was wrong with providers."""
    found: dict[str, Section] = {}
    notes = []
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        try:
            for given in entry.load()(path, other):
                section = checked(given)
                if section.id in found:
                    found[section.id].blocks.extend(section.blocks)
                elif section.blocks:
                    found[section.id] = section
        except Exception as error:
            said = " ".join(str(error).split())
            notes.append(
                f"What {entry.name} ({entry.value}) has to say is left out: {type(error).__name__}: {said}"
            )
    return sorted(found.values(), key=lambda each: each.order), notes


def checked(given: Any) -> Section:
    """A section whose blocks are as the format says, with all their numbers and arrays as JSON has them.

    Raises:
        InputError: it is not of the format.
    """
    _keys(given, {"id": str, "title": str, "order": (int, float), "blocks": list}, "a section")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", given["id"]):
        raise _wrong(f"a section with the id {given['id']!r}", "small letters, digits and -")
    blocks = [_block(each, f"a block of the section {given['id']!r}") for each in given["blocks"]]
    return Section(given["id"], given["title"], float(given["order"]), blocks)


def _block(given: Any, what: str) -> dict[str, Any]:
    kind = given.get("kind") if isinstance(given, Mapping) else None
    if kind not in KINDS:
        raise _wrong(f"{what} of the kind {kind!r}", f"one of: {', '.join(KINDS)}")
    what = f"{what} of the kind {kind!r}"
    _keys(given, KINDS[kind], what)
    block = {"kind": kind, **{key: given[key] for key in KINDS[kind]}}
    if kind == "plot":
        return _plot(given, what)
    if kind == "choice":
        if not given["plots"]:
            raise _wrong(f"{what} without plots", "at least one plot")
        block["plots"] = [_plot(each, what) for each in given["plots"]]
    if kind == "table":
        block["rows"] = _cells(given, what)
    if kind == "finding":
        if given["severity"] not in SEVERITIES:
            raise _wrong(f"{what} of the severity {given['severity']!r}", f"one of: {', '.join(SEVERITIES)}")
        block["plot"] = None if given["plot"] is None else _plot(given["plot"], what)
    return block


def _plot(given: Any, what: str) -> dict[str, Any]:
    _keys(given, _PLOT, what)
    found = {"kind": "plot", "title": given["title"], "describe": given["describe"]}
    data = plain(given["data"], what)
    if not all(isinstance(trace, dict) for trace in data):
        raise _wrong(f"{what} with a trace that is no dict", "traces as Plotly has them")
    for trace in data[1:]:
        if isinstance(trace.get("x"), dict) and trace["x"] == data[0].get("x"):
            trace["x"] = SAME  # half of a page's bytes would be steps
    return found | {"data": data, "layout": plain(given["layout"], what)}


def _cells(given: Mapping[str, Any], what: str) -> list[list[Any]]:
    for row in given["rows"]:
        if not isinstance(row, (list, tuple)) or len(row) != len(given["columns"]):
            raise _wrong(
                f"{what} with the row {row!r}"[:200], f"{len(given['columns'])} cells, as there are columns"
            )
        for cell in row:
            if not isinstance(cell, CELL):
                raise _wrong(
                    f"{what} with a cell of {type(cell).__name__}", "texts, numbers, booleans or None"
                )
    return [[each.item() if isinstance(each, np.generic) else each for each in row] for row in given["rows"]]


def _keys(given: Any, keys: Mapping[str, Any], what: str) -> None:
    if not isinstance(given, Mapping):
        raise _wrong(f"{what} that is a {type(given).__name__}", "a dict")
    for key, kind in keys.items():
        if key not in given:
            raise _wrong(f"{what} without {key!r}", f"the keys {', '.join(keys)}")
        if not isinstance(given[key], kind):
            raise _wrong(f"{what} with {key}={given[key]!r}"[:200], f"{key} of the type {kind}")


def _wrong(seen: str, expected: str) -> InputError:
    return InputError(
        seen, expected, "a provider of sections of another form", "see loopwise.report.sections"
    )


def plain(value: Any, what: str) -> Any:
    """As JSON has it: arrays as Plotly's typed ones, numbers that are not finite as ``None``."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, what) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, what) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise _wrong(f"{what} with a {type(value).__name__}", "lists, dicts, texts, numbers and NumPy arrays")


def _array(array: NDArray[Any]) -> Any:
    if array.dtype.kind not in "biuf" or not array.ndim:
        return plain(array.tolist(), "an array")
    if array.dtype.kind == "f":
        array = np.where(np.isfinite(array), array, np.nan)
        code = "<f4" if not np.any(np.abs(array) > np.finfo("f4").max) else "<f8"
    else:
        code = "<i4" if not array.size or max(abs(int(array.min())), abs(int(array.max()))) < 2**31 else "<f8"
    data = base64.b64encode(array.astype(code).tobytes()).decode()
    found = {"dtype": code[1:], "bdata": data}
    return found if array.ndim == 1 else found | {"shape": ", ".join(map(str, array.shape))}
