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
from typing import Any, NamedTuple

import fsspec

from loopwise.extras import required
from loopwise.run import Run, is_local, location, write_file
from loopwise.sections import table

from .bundle import TYPES, drawn_types, plotly
from .facts import QUIET, Facts, facts, moment
from .sections import SEVERITIES, Section, collect
from .summary import summarized

FOLDER = Path(__file__).parent / "browser"
"""Templates, styles and scripts."""
NAME = "report.html"
COMPARISON = "comparison"
"""Id of the section that compares runs."""
STYLES = ("page.css", "plots.css", "narrow.css")
SCRIPTS = ("maps.js", "plots.js", "layers.js", "runs.js", "controls.js", "cursor.js", "page.js", "live.js")
"""Scripts of the page in their order: each uses those before it."""
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'"
"""Content security policy of the page."""
HEIGHT = 300
"""Height in pixels of a plot whose layout names none."""
PLOTS = ("plot", "choice")
"""Kinds of blocks to which findings link."""
COLUMNS = 3
"""Columns of a table that may share a row with other blocks."""


class Drawn(NamedTuple):
    """Keys, height and switches of the plots of a block, for its HTML."""

    keys: list[str]
    height: int
    """Pixels."""
    tools: list[str]
    """Names of switches: ``log``, ``smooth``."""


Runs = str | os.PathLike[str] | Run | Iterable[str | os.PathLike[str] | Run] | None
"""A run, or several."""


def locations(runs: Runs) -> list[str]:
    """Return the folders or URLs of runs."""
    if runs is None:
        return []
    several = [runs] if isinstance(runs, (str, os.PathLike, Run)) or not isinstance(runs, Iterable) else runs
    return [location(run) for run in several]


def report(
    run: str | os.PathLike[str] | Run,
    out: str | os.PathLike[str] | None = None,
    compare: Runs = (),
) -> str:
    """Write the page of a run, which may still be in progress.

    Args:
        run: folder or fsspec URL of the run, or a ``Run``.
        out: file or fsspec URL of the page; default: ``report.html`` in the run's folder.  An existing file is
            replaced atomically.
        compare: another run, or several, to compare with.

    Returns:
        The path or URL of the page.

    Raises:
        InputError: the folder holds no run, or one that a newer version wrote.
        MissingExtra: plotly or jinja2 is not installed.
    """
    path = location(run)
    text = html(state(path, *locations(compare)))
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
    drawn = sorted(TYPES | drawn_types(plots.values()))
    return str(
        environment.get_template("page.html").render(
            state=state,
            policy=POLICY,
            plots=embedded(
                {"plots": plots, "types": drawn, "live": live, "etag": state["etag"], "run": state["run"]}
            ),
            plotly="" if state["run"]["list"] else plotly(drawn),
            css="\n".join((FOLDER / name).read_text() for name in STYLES),
            scripts=[(FOLDER / name).read_text() for name in SCRIPTS],
        )
    )


def state(path: str, *others: str, back: str = "") -> dict[str, Any]:
    """Read a run and return the state of its page.

    Args:
        path: folder or fsspec URL of the run.
        others: runs to compare with.
        back: address of a list of runs, to which the page links; default: no link.

    Raises:
        InputError: the folder holds no run, or one that a newer version wrote.
        MissingExtra: jinja2 is not installed.
    """
    first, *beside = [facts(run) for run in (path, *others)]
    sections, notes = collect(path, *others)
    sections = summarized(first, sections)
    if beside:
        sections = _with_comparison([first, *beside], sections)
    if not sections:
        notes.append(
            "There is nothing to show yet: no part has written into this run. A Watch writes at the steps that it saves."
        )
    render = _environment().get_template("blocks.html").module
    keyed = {section.id: _keyed(section) for section in sections}
    places = {block["title"]: key for of in keyed.values() for key, block in of if block["kind"] in PLOTS}
    known = {
        name
        for of in keyed.values()
        for _, block in of
        if block["kind"] == "layers"
        for name in block["names"]
    }
    rendered = [
        {"id": s.id, "title": s.title, "blocks": list(_rendered(keyed[s.id], render, places, known))}
        for s in sections
    ]
    badges = [{"id": section.id, "title": section.title, **_badge(section)} for section in sections]
    content = {
        "head": _block("head", str(render.head(first, beside, notes, moment, back))),
        "nav": _block("nav", str(render.nav(badges))),
        "sections": rendered,
        "run": {
            "state": first.state,
            "written": first.written,
            "quiet": QUIET,
            "name": first.name,
            "list": False,
        },
    }
    return content | {"etag": _digest(json.dumps(content))}


def listed(folder: str, runs: Sequence[tuple[str, str, Mapping[str, Any]]], unread: int) -> dict[str, Any]:
    """Return the state of a list of runs.

    Args:
        folder: folder or URL of the runs.
        runs: name, address and values by column of each run.
        unread: number of runs whose values are not known yet.
    """
    render = _environment().get_template("blocks.html").module
    columns = list(dict.fromkeys(column for _, _, row in runs for column in row))
    name = folder.rsplit("/", 1)[-1]
    content = {
        "head": _block("head", str(render.runs_head(name, folder, len(runs), unread))),
        "nav": _block("nav", ""),
        "sections": [
            {"id": "runs", "title": "Runs", "blocks": [_block("runs", str(render.runs(runs, columns)))]}
        ],
        "run": {"state": "running", "written": 0, "quiet": QUIET, "name": name, "list": True},
    }
    return content | {"etag": _digest(json.dumps(content))}


def _with_comparison(runs: Sequence[Facts], sections: list[Section]) -> list[Section]:
    """Add the facts that differ between runs, before the other blocks of the comparison."""
    known = [dict(run.rows()) for run in runs]
    names = dict.fromkeys(name for rows in known for name in rows)
    rows = [[name, *(of.get(name, "") for of in known)] for name in names]
    rows = [["folder", *(run.path for run in runs)], *(row for row in rows if len(set(row[1:])) > 1)]
    blocks = [table("Differences", ["", *(run.name for run in runs)], rows)]
    blocks += [block for section in sections if section.id == COMPARISON for block in section.blocks]
    rest = [section for section in sections if section.id != COMPARISON]
    return sorted(
        [*rest, Section(COMPARISON, "Runs compared", 15.0, blocks)], key=lambda section: section.order
    )


def _keyed(section: Section) -> list[tuple[str, dict[str, Any]]]:
    """Return the blocks of a section with their keys, findings by severity."""
    counts: Counter[str] = Counter()
    keyed = []
    order = {severity: -number for number, severity in enumerate(SEVERITIES)}
    for block in sorted(section.blocks, key=lambda block: order.get(block.get("severity", ""), -9)):
        key = re.sub(r"[^a-z0-9]+", "-", f"{section.id}-{block['kind']}-{_name(block)}".lower())
        counts[key] += 1
        keyed.append((f"{key}-{counts[key]}" if counts[key] > 1 else key, block))
    return keyed


def _rendered(
    keyed: Iterable[tuple[str, dict[str, Any]]], render: Any, places: Mapping[str, str], known: set[str]
) -> Iterable[dict[str, Any]]:
    """Yield the blocks of a section as HTML.

    Args:
        keyed: keys and blocks.
        render: macros of ``blocks.html``.
        places: keys of plots by title, to which findings link.
        known: names of the layers that can be selected.
    """
    for key, block in keyed:
        candidates = block["plots"] if block["kind"] == "choice" else [block.get("plot", block)]
        plots = {
            name: {part: plot[part] for part in ("data", "layout", "describe", "frames") if part in plot}
            for name, plot in zip(_plot_keys(key, candidates), candidates, strict=True)
            if plot is not None and "data" in plot
        }
        if block["kind"] == "finding":
            links = {title: places[title] for title in block["plots"] if title in places}
            block = block | {
                "links": links,
                "layers": [name for name in block["tensors"] if _is_layer(name, known)],
            }
        drawn = Drawn(list(plots), _height(candidates), _tools(candidates))
        text = getattr(render, block["kind"])(block, key, drawn)
        yield _block(key, str(text), plots) | {"narrow": _is_narrow(block, candidates)}


def _is_layer(name: str, known: set[str]) -> bool:
    """Return whether a name is a layer's, or that of one of its parameters."""
    return name in known or name.rpartition(".")[0] in known


def _tools(plots: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """Return the switches that any of a block's plots has."""
    shown = [plot for plot in plots if plot and "data" in plot]
    traces = [trace for plot in shown for trace in plot["data"]]
    lines = any(trace.get("type") == "scatter" and "stackgroup" not in trace for trace in traces)
    smooth = any((trace.get("meta") or {}).get("smooth") for trace in traces)
    return ["log"] * lines + ["smooth"] * smooth


def _is_narrow(block: Mapping[str, Any], plots: Iterable[Mapping[str, Any] | None]) -> bool:
    """Return whether a block may share a row with others: most plots, and tables of few columns."""
    if block["kind"] == "table":
        return len(block["columns"]) <= COLUMNS
    maps = any(trace.get("type") == "heatmap" for plot in plots if plot for trace in plot.get("data", ()))
    return block["kind"] in ("plot", "choice") and not maps


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
    environment.filters |= {"cell": cell, "coded": coded, "sentence": sentence, "grouped": grouped}
    return environment


def grouped(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Group names of layers by the module that contains them, in order of first appearance."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    return list(groups.items())


def cell(value: Any) -> str:
    """Format the value of a table's cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def coded(text: str) -> Any:
    """Return a text as HTML, with what is between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def sentence(text: str) -> str:
    """Add a full stop, and a capital letter unless the text begins with a name such as ``layers.0.weight``."""
    text = text.strip()
    if re.match(r"[^\W\d_]+\b(?![.\d_])", text):
        text = text[0].upper() + text[1:]
    return text + ("" if not text or text[-1] in ".!?:" else ".")
