"""Makes the page: one HTML file with everything in it, and the same as JSON for a page that is open already.

What both share is a ``state``: the head, the navigation and the sections, cut into blocks.  A block is
``{"key": text, "hash": text, "html": text, "plots": {key: figure}}``; its key stays the same from state to state, and
``hash`` changes with what a person sees of it.  A figure has Plotly's ``data`` and ``layout``, and ``describe``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec

from loopwise.errors import MissingExtra

from .facts import QUIET, Facts, facts, moment
from .sections import SEVERITIES, Section, collect

FOLDER = Path(__file__).parent
NAME = "report.html"
COMPARISON = "comparison"
"""Id of the section where two runs are compared."""
HEIGHT = 300
"""Pixels of a plot that does not say."""


def report(
    path: str | os.PathLike[str], out: str | None = None, compare: str | os.PathLike[str] | None = None
) -> str:
    """Write the page of a run, which may still go on.

    Args:
        path: folder or fsspec URL of the run.
        out: file or fsspec URL; default: ``report.html`` in the run's folder.  It is replaced as a whole.
        compare: another run to show beside it.

    Returns:
        Where the page is.

    Raises:
        InputError: there is no run, or it is of a newer version.
        MissingExtra: plotly or jinja2 is not installed.
    """
    path = os.fspath(path)
    text = html(state(path, None if compare is None else os.fspath(compare)))
    target = f"{path.rstrip('/')}/{NAME}" if out is None else out
    fs, file = fsspec.core.url_to_fs(target)
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if "file" not in protocols:
        fs.pipe_file(file, text.encode())
        return target
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(f"{file}.new").write_text(text, encoding="utf-8")
    os.replace(f"{file}.new", file)
    return target


def html(found: Mapping[str, Any], live: bool = False) -> str:
    """The page of a state as text; a ``live`` one asks its server for more.

    Raises:
        MissingExtra: plotly or jinja2 is not installed.
    """
    environment = _environment()
    blocks = [found["head"], *(block for section in found["sections"] for block in section["blocks"])]
    plots = {key: figure for block in blocks for key, figure in block["plots"].items()}
    return str(
        environment.get_template("page.html").render(
            state=found,
            plots=embedded({"plots": plots, "live": live, "etag": found["etag"], "run": found["run"]}),
            plotly=_plotly(),
            css=(FOLDER / "page.css").read_text(),
            scripts=[(FOLDER / name).read_text() for name in ("plots.js", "page.js")],
        )
    )


def state(path: str, other: str | None = None) -> dict[str, Any]:
    """What a page shows of a run.

    Raises:
        InputError: there is no run, or it is of a newer version.
        MissingExtra: jinja2 is not installed.
    """
    about = [facts(each) for each in (path, other) if each is not None]
    sections, notes = collect(path, other)
    if len(about) > 1:
        sections = _compared(about[0], about[1], sections)
    if not sections:
        notes.append(
            "Nothing can be shown yet: no part has written into this run. A Watch writes at the steps that it saves."
        )
    render = _environment().get_template("blocks.html").module
    shown = [{"id": each.id, "title": each.title, "blocks": list(_blocks(each, render))} for each in sections]
    head = _stated("head", str(render.head(about[0], about[1:], notes, moment)))
    badges = [{"id": each.id, "title": each.title, **_badge(each)} for each in sections]
    found = {
        "head": head,
        "nav": _stated("nav", str(render.nav(badges))),
        "sections": shown,
        "run": {"state": about[0].state, "written": about[0].written, "quiet": QUIET, "name": about[0].name},
    }
    return found | {"etag": _digest(json.dumps(found))}


def _compared(first: Facts, second: Facts, sections: list[Section]) -> list[Section]:
    """With the facts that differ between two runs, before what others compare."""
    pairs = dict(first.rows()), dict(second.rows())
    rows = [[name, *(pair.get(name, "") for pair in pairs)] for name in {**pairs[0], **pairs[1]}]
    rows = [["folder", first.path, second.path], *(row for row in rows if row[1] != row[2])]
    table = {"kind": "table", "title": "What differs", "columns": ["", first.name, second.name], "rows": rows}
    there = next((each for each in sections if each.id == COMPARISON), None)
    blocks = [table, *(there.blocks if there else [])]
    rest = [each for each in sections if each is not there]
    return sorted([*rest, Section(COMPARISON, "Two runs", 15.0, blocks)], key=lambda each: each.order)


def _blocks(section: Section, render: Any) -> Iterable[dict[str, Any]]:
    """Blocks of a section as HTML; findings by severity."""
    keys: dict[str, int] = {}
    order = {severity: -number for number, severity in enumerate(SEVERITIES)}
    for block in sorted(section.blocks, key=lambda each: order.get(each.get("severity", ""), -9)):
        key = re.sub(r"[^a-z0-9]+", "-", f"{section.id}-{block['kind']}-{_name(block)}".lower())
        keys[key] = keys.get(key, 0) + 1
        key += f"-{keys[key]}" if keys[key] > 1 else ""
        several = block["plots"] if block["kind"] == "choice" else [block.get("plot", block)]
        plots = {
            name: {part: plot[part] for part in ("data", "layout", "describe")}
            for name, plot in zip(_keys(key, several), several, strict=True)
            if plot is not None and "data" in plot
        }
        text = getattr(render, block["kind"])(block, key, list(plots), _height(several))
        yield _stated(key, str(text), plots)


def _keys(key: str, plots: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Of a block's plots: of several by title, so that a chosen one stays the same where others come or go."""
    if len(plots) == 1:
        return [key]
    titles = [plot["title"] for plot in plots if plot is not None]
    once = {title for title, count in Counter(titles).items() if count == 1}
    return [f"{key}.{title}" if title in once else f"{key}#{number}" for number, title in enumerate(titles)]


def _name(block: Mapping[str, Any]) -> str:
    return f"{block['rule']}-{block['step']}" if block["kind"] == "finding" else str(block.get("title", ""))


def _height(plots: Iterable[Mapping[str, Any] | None]) -> int:
    """Pixels that plots need."""
    heights = [plot["layout"].get("height", HEIGHT) for plot in plots if plot and "layout" in plot]
    return int(max(heights, default=HEIGHT))


def _badge(section: Section) -> dict[str, Any]:
    """Number and worst severity of a section's findings that a person has to look at."""
    found = [block["severity"] for block in section.blocks if block["kind"] == "finding"]
    serious = [severity for severity in found if severity != "info"]
    worst = max(serious, key=SEVERITIES.index, default="")
    return {"count": len(serious), "worst": worst}


def _stated(key: str, text: str, plots: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"key": key, "hash": _digest(text + json.dumps(plots)), "html": text, "plots": dict(plots or {})}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def embedded(value: Any) -> str:
    """JSON that can stand in a ``script`` element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _environment() -> Any:
    try:
        import jinja2
    except ModuleNotFoundError:
        raise MissingExtra.of("jinja2", "report", "the page of a run") from None
    loader = jinja2.FileSystemLoader(FOLDER)
    found = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"cell": cell, "sentence": sentence}
    return found


def _plotly() -> str:
    try:
        from plotly.offline.offline import get_plotlyjs
    except ModuleNotFoundError:
        raise MissingExtra.of("plotly", "report", "the page of a run") from None
    return str(get_plotlyjs())


def cell(value: Any) -> str:
    """A table's cell as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def sentence(text: str) -> str:
    """With a full stop, and with a capital unless it begins with a name such as ``layers.0.weight``."""
    text = text.strip()
    if re.match(r"[^\W\d_]+\b(?![.\d_])", text):
        text = text[0].upper() + text[1:]
    return text + ("" if not text or text[-1] in ".!?:" else ".")
