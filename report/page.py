"""The page of a run: one HTML file, and the same content as JSON for a page that is open in a browser.

Both are made from a *state*: the head, the navigation and the sections, divided into blocks.  A block is
``{"key": text, "hash": text, "html": text, "plots": {key: figure}}``.  Its key is the same in successive states;
its ``hash`` changes if anything visible of it changes.  A figure has Plotly's ``data`` and ``layout``, and ``describe``.
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

from loopwise.extras import required
from loopwise.run import Run, is_local, location, write_file
from loopwise.sections import table

from .facts import QUIET, Facts, facts, moment
from .sections import SEVERITIES, Section, collect

FOLDER = Path(__file__).parent
NAME = "report.html"
COMPARISON = "comparison"
"""Id of the section that compares two runs."""
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'"
"""Content security policy of the page."""
HEIGHT = 300
"""Height in pixels of a plot whose layout names none."""


def report(
    run: str | os.PathLike[str] | Run,
    out: str | os.PathLike[str] | None = None,
    compare: str | os.PathLike[str] | Run | None = None,
) -> str:
    """Write the page of a run, which may still be in progress.

    Args:
        run: folder or fsspec URL of the run, or a ``Run``.
        out: file or fsspec URL of the page; default: ``report.html`` in the run's folder.  An existing file is
            replaced atomically.
        compare: another run to compare with.

    Returns:
        The path or URL of the page.

    Raises:
        InputError: the folder holds no run, or one that a newer version wrote.
        MissingExtra: plotly or jinja2 is not installed.
    """
    path = location(run)
    text = html(state(path, None if compare is None else location(compare)))
    target = f"{path.rstrip('/')}/{NAME}" if out is None else os.fspath(out)
    fs, file = fsspec.core.url_to_fs(target)
    if is_local(fs):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_file(fs, file, text.encode(errors="replace"))
    return target


def html(state: Mapping[str, Any], live: bool = False) -> str:
    """Render a state as a page.

    Args:
        state: the state of a run's page.
        live: whether the page asks its server for newer states.

    Raises:
        MissingExtra: plotly or jinja2 is not installed.
    """
    environment = _environment()
    blocks = [state["head"], *(block for section in state["sections"] for block in section["blocks"])]
    plots = {key: figure for block in blocks for key, figure in block["plots"].items()}
    return str(
        environment.get_template("page.html").render(
            state=state,
            policy=POLICY,
            plots=embedded({"plots": plots, "live": live, "etag": state["etag"], "run": state["run"]}),
            plotly=_plotly(),
            css=(FOLDER / "page.css").read_text(),
            scripts=[(FOLDER / name).read_text() for name in ("plots.js", "page.js")],
        )
    )


def state(path: str, other: str | None = None) -> dict[str, Any]:
    """Read a run and return the state of its page.

    Args:
        path: folder or fsspec URL of the run.
        other: another run to compare with.

    Raises:
        InputError: the folder holds no run, or one that a newer version wrote.
        MissingExtra: jinja2 is not installed.
    """
    first, *others = [facts(run) for run in (path, other) if run is not None]
    sections, notes = collect(path, other)
    if others:
        sections = _with_comparison(first, others[0], sections)
    if not sections:
        notes.append(
            "There is nothing to show yet: no part has written into this run. A Watch writes at the steps that it saves."
        )
    render = _environment().get_template("blocks.html").module
    rendered = [{"id": s.id, "title": s.title, "blocks": list(_blocks(s, render))} for s in sections]
    badges = [{"id": section.id, "title": section.title, **_badge(section)} for section in sections]
    content = {
        "head": _block("head", str(render.head(first, others, notes, moment))),
        "nav": _block("nav", str(render.nav(badges))),
        "sections": rendered,
        "run": {"state": first.state, "written": first.written, "quiet": QUIET, "name": first.name},
    }
    return content | {"etag": _digest(json.dumps(content))}


def _with_comparison(first: Facts, second: Facts, sections: list[Section]) -> list[Section]:
    """Add the facts that differ between two runs, before the other blocks of the comparison."""
    pairs = dict(first.rows()), dict(second.rows())
    rows = [[name, *(pair.get(name, "") for pair in pairs)] for name in {**pairs[0], **pairs[1]}]
    rows = [["folder", first.path, second.path], *(row for row in rows if row[1] != row[2])]
    blocks = [table("Differences", ["", first.name, second.name], rows)]
    blocks += [block for section in sections if section.id == COMPARISON for block in section.blocks]
    rest = [section for section in sections if section.id != COMPARISON]
    return sorted([*rest, Section(COMPARISON, "Two runs", 15.0, blocks)], key=lambda section: section.order)


def _blocks(section: Section, render: Any) -> Iterable[dict[str, Any]]:
    """Render the blocks of a section, findings by severity."""
    counts: Counter[str] = Counter()
    order = {severity: -number for number, severity in enumerate(SEVERITIES)}
    for block in sorted(section.blocks, key=lambda block: order.get(block.get("severity", ""), -9)):
        key = re.sub(r"[^a-z0-9]+", "-", f"{section.id}-{block['kind']}-{_name(block)}".lower())
        counts[key] += 1
        key += f"-{counts[key]}" if counts[key] > 1 else ""
        candidates = block["plots"] if block["kind"] == "choice" else [block.get("plot", block)]
        plots = {
            name: {part: plot[part] for part in ("data", "layout", "describe")}
            for name, plot in zip(_plot_keys(key, candidates), candidates, strict=True)
            if plot is not None and "data" in plot
        }
        text = getattr(render, block["kind"])(block, key, list(plots), _height(candidates))
        yield _block(key, str(text), plots)


def _plot_keys(key: str, plots: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """Return keys of a block's plots, made of their titles, so that a key outlasts the arrival of other plots."""
    if len(plots) == 1:
        return [key]
    titles = [plot["title"] for plot in plots if plot is not None]
    unique = {title for title, count in Counter(titles).items() if count == 1}
    return [f"{key}.{title}" if title in unique else f"{key}#{number}" for number, title in enumerate(titles)]


def _name(block: Mapping[str, Any]) -> str:
    return f"{block['rule']}-{block['step']}" if block["kind"] == "finding" else str(block.get("title", ""))


def _height(plots: Iterable[Mapping[str, Any] | None]) -> int:
    """Return the height of the tallest plot in pixels."""
    heights = [plot["layout"].get("height", HEIGHT) for plot in plots if plot and "layout" in plot]
    return int(max(heights, default=HEIGHT))


def _badge(section: Section) -> dict[str, Any]:
    """Return the number of a section's warnings and critical findings, and the worst severity among them."""
    severities = [block["severity"] for block in section.blocks if block["kind"] == "finding"]
    serious = [severity for severity in severities if severity != "info"]
    return {"count": len(serious), "worst": max(serious, key=SEVERITIES.index, default="")}


def _block(key: str, text: str, plots: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"key": key, "hash": _digest(text + json.dumps(plots)), "html": text, "plots": dict(plots or {})}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[
        :16
    ]  # half of a character pair, from a file


def embedded(value: Any) -> str:
    """Encode a value as JSON that is safe inside a ``script`` element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _environment() -> Any:
    with required("jinja2", "report", "the page of a run"):
        import jinja2
    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": cell, "sentence": sentence}
    return environment


def _plotly() -> str:
    with required("plotly", "report", "the page of a run"):
        from plotly.offline.offline import get_plotlyjs
    return str(get_plotlyjs())


def cell(value: Any) -> str:
    """Format the value of a table's cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def sentence(text: str) -> str:
    """Add a full stop, and a capital letter unless the text begins with a name such as ``layers.0.weight``."""
    text = text.strip()
    if re.match(r"[^\W\d_]+\b(?![.\d_])", text):
        text = text[0].upper() + text[1:]
    return text + ("" if not text or text[-1] in ".!?:" else ".")
