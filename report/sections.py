"""Sections of the page of a run: their format, and the providers that make them.

A provider is a function ``sections(path: str, *others: str) -> list[dict]`` under the entry point group
``loopwise.sections``.  It reads the run in the folder or at the fsspec URL ``path``, which may still be in progress,
and compares it with the runs ``others``.  It returns no section that has nothing to show.  If a provider raises an
exception, the page names it and shows the sections of the others.  Beside it, its module may have a function
``overview(path: str) -> dict[str, cell]``: values by column for the run's row in a list of runs.

A section is ``{"id": "findings", "title": "Findings", "order": 20, "blocks": [...]}``.  The id consists of small letters,
digits and ``-``.  Sections are sorted by ``order``; sections of the same id are joined.  The functions of
``loopwise.sections`` build sections and blocks.  A block has one of these forms:

``{"kind": "text", "text": str}``
    A paragraph.
``{"kind": "summary", "text": str, "order": number}``
    A sentence for the first paragraph of the page, which shows the sentences of all sections in their order: what was
    trained and how it went (below 50), what it cost and saved (50 to 90), what to look at (above 90).
``{"kind": "table", "title": str, "columns": [str, ...], "rows": [[cell, ...], ...]}``
    A table.  Cells are texts, numbers, booleans or ``None``.
``{"kind": "plot", "title": str, "describe": str, "data": [trace, ...], "layout": {...}}``
    A plot, with traces and layout in Plotly's form.  NumPy arrays are allowed: they are sent as 32-bit numbers, and
    values that are not finite become gaps.  ``describe`` says in words what the plot shows.  Colours come from the
    page, which is light or dark: the key ``meta: {"color": c}`` of a trace selects a colour by its number or as
        ``critical``, ``warning``, ``info`` or ``muted``; a heat map with ``zmid`` gets a diverging scale.  Two traces with
    ``meta: {"smooth": "raw"}`` and ``meta: {"smooth": "mean"}`` are values and their moving mean, between which the
    reader switches.  A heat map with ``meta: {"of": str, "scale": "log" or "linear"}`` has layers as rows: ``of`` says
    what it shows of them, and ``log`` that its numbers are powers of ten.  Optional key ``frames: {"label": str,
    "values": (n,), "range": (n, 2), "y": (n, bins)}``: ``n`` histograms for a slider, each of bins of equal width
    between the two ends of its range; the chosen one replaces the first trace.
``{"kind": "choice", "title": str, "label": str, "plots": [plot, ...]}``
    Several plots, one of which is shown at a time; the reader chooses it by its title.  Optional key ``of_layers``:
    true if the titles are names of modules or parameters, so that the selected layer chooses.
``{"kind": "layers", "title": str, "names": [str, ...]}``
    A list of layers with a search.  The selection holds for all plots of layers.
``{"kind": "finding", "severity": "info" | "warning" | "critical", "rule": str, "step": int, "what": str, "advice": str,
"line": str, "plot": plot or None}``
    A finding of a rule.  ``line`` names a place in the user's code, or is empty.  Optional keys: ``tensors``, names of
    modules and parameters that become links to their layer, and ``plots``, titles of plots to link to.
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
    "summary": {"text": str, "order": (int, float)},
    "table": {"title": str, "columns": list, "rows": list},
    "plot": _PLOT,
    "choice": {"title": str, "label": str, "plots": list},
    "layers": {"title": str, "names": list},
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
OPTIONAL: dict[str, dict[str, Any]] = {
    "choice": {"of_layers": bool},
    "finding": {"tensors": list, "plots": list},
}
"""Kind of a block -> keys that it may lack, and their types."""
TEXTS = {"layers": ("names",), "finding": ("tensors", "plots")}
"""Kind of a block -> keys that hold texts."""
_FRAMES = {"label": str, "values": np.ndarray, "range": np.ndarray, "y": np.ndarray}
SAME = "same"
"""Replacement of a trace's ``x`` that equals the ``x`` of the plot's first trace."""
CELL = (str, int, float, bool, type(None), np.generic)


@dataclass(frozen=True)
class Section:
    """A valid section."""

    id: str
    title: str
    order: float
    blocks: list[dict[str, Any]]


def collect(path: str, *others: str) -> tuple[list[Section], list[str]]:
    """Return the sections of all providers in their order, and a note for each provider that failed."""
    sections: dict[str, Section] = {}
    notes = []
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            for unchecked in entry.load()(path, *others):
                section = validated(unchecked)
                if section.id in sections:
                    sections[section.id].blocks.extend(section.blocks)
                elif section.blocks:
                    sections[section.id] = section
        except Exception as error:
            message = " ".join(str(error).split())
            notes.append(
                f"The sections of {entry.name} ({entry.value}) are missing: {type(error).__name__}: {message}"
            )
    return sorted(sections.values(), key=lambda section: section.order), notes


def validated(section: Any) -> Section:
    """Validate a section, and convert its numbers and arrays to values that JSON can hold.

    Raises:
        InputError: the section has another format.
    """
    _require(section, {"id": str, "title": str, "order": (int, float), "blocks": list}, "a section")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", section["id"]):
        raise _error(f"a section with the id {section['id']!r}", "small letters, digits and -")
    blocks = [_block(block, f"a block of the section {section['id']!r}") for block in section["blocks"]]
    return Section(section["id"], section["title"], float(section["order"]), blocks)


def _block(block: Any, name: str) -> dict[str, Any]:
    kind = block.get("kind") if isinstance(block, Mapping) else None
    if kind not in KINDS:
        raise _error(f"{name} of the kind {kind!r}", f"one of: {', '.join(KINDS)}")
    name = f"{name} of the kind {kind!r}"
    _require(block, KINDS[kind], name)
    optional = {key: of() for key, of in OPTIONAL.get(kind, {}).items()}
    block = {**optional, **block}
    _require(block, OPTIONAL.get(kind, {}), name)
    valid = {"kind": kind, **{key: block[key] for key in (*KINDS[kind], *optional)}}
    for key in TEXTS.get(kind, ()):
        if not all(isinstance(item, str) for item in block[key]):
            raise _error(f"{name} with {key} that are no texts", "a list of texts")
    if kind == "plot":
        return _plot(block, name)
    if kind == "choice":
        if not block["plots"]:
            raise _error(f"{name} without plots", "at least one plot")
        valid["plots"] = [_plot(plot, name) for plot in block["plots"]]
    if kind == "table":
        valid["rows"] = _cells(block, name)
    if kind == "finding":
        if block["severity"] not in SEVERITIES:
            raise _error(f"{name} of the severity {block['severity']!r}", f"one of: {', '.join(SEVERITIES)}")
        valid["plot"] = None if block["plot"] is None else _plot(block["plot"], name)
    return valid


def _plot(plot: Any, name: str) -> dict[str, Any]:
    _require(plot, _PLOT, name)
    data = plain(plot["data"], name)
    if not all(isinstance(trace, dict) for trace in data):
        raise _error(f"{name} with a trace that is no dict", "traces in Plotly's form")
    for trace in data[1:]:
        if isinstance(trace.get("x"), dict) and trace["x"] == data[0].get("x"):
            trace["x"] = SAME  # otherwise half of a page's bytes would be steps
    result = {"kind": "plot", "title": plot["title"], "describe": plot["describe"], "data": data}
    result["layout"] = plain(plot["layout"], name)
    return result | {"frames": _frames(plot["frames"], name)} if "frames" in plot else result


def _frames(frames: Any, name: str) -> dict[str, Any]:
    name = f"frames of {name}"
    _require(frames, _FRAMES, name)
    count = len(frames["values"])
    shapes = frames["values"].shape, frames["range"].shape, frames["y"].shape[:1]
    if not count or shapes != ((count,), (count, 2), (count,)) or frames["y"].ndim != 2:
        raise _error(
            f"{name} of the shapes {shapes}", "values (n,), range (n, 2) and y (n, bins), n at least 1"
        )
    return {key: plain(frames[key], name) for key in _FRAMES}


def _cells(table: Mapping[str, Any], name: str) -> list[list[Any]]:
    for row in table["rows"]:
        if not isinstance(row, (list, tuple)) or len(row) != len(table["columns"]):
            raise _error(
                f"{name} with the row {row!r}"[:200], f"{len(table['columns'])} cells, one for each column"
            )
        for cell in row:
            if not isinstance(cell, CELL):
                raise _error(
                    f"{name} with a cell of {type(cell).__name__}", "texts, numbers, booleans or None"
                )
    return [[cell.item() if isinstance(cell, np.generic) else cell for cell in row] for row in table["rows"]]


def _require(value: Any, keys: Mapping[str, Any], name: str) -> None:
    if not isinstance(value, Mapping):
        raise _error(f"{name} that is a {type(value).__name__}", "a dict")
    for key, kind in keys.items():
        if key not in value:
            raise _error(f"{name} without {key!r}", f"the keys {', '.join(keys)}")
        if not isinstance(value[key], kind):
            raise _error(f"{name} with {key}={value[key]!r}"[:200], f"{key} of the type {kind}")


def _error(seen: str, expected: str) -> InputError:
    return InputError(
        seen,
        expected,
        "a provider that does not follow the format of sections",
        "build the section with the functions of loopwise.sections; loopwise.report.sections documents the format",
    )


def plain(value: Any, name: str) -> Any:
    """Convert a value to JSON's types: arrays to Plotly's typed arrays, numbers that are not finite to ``None``."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, name) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, (list, tuple)):
        return [plain(item, name) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise _error(f"{name} with a {type(value).__name__}", "lists, dicts, texts, numbers and NumPy arrays")


def _array(array: NDArray[Any]) -> Any:
    if array.dtype.kind not in "biuf" or not array.ndim:
        return plain(array.tolist(), "an array")
    if array.dtype.kind == "f":
        array = np.where(np.isfinite(array), array, np.nan)
        code = "<f4" if not np.any(np.abs(array) > np.finfo("f4").max) else "<f8"
    else:
        code = "<i4" if not array.size or max(abs(int(array.min())), abs(int(array.max()))) < 2**31 else "<f8"
    data = base64.b64encode(array.astype(code).tobytes()).decode()
    typed = {"dtype": code[1:], "bdata": data}
    return typed if array.ndim == 1 else typed | {"shape": ", ".join(map(str, array.shape))}
