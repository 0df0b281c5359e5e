"""What the page of a run shows of what a ``Watch`` saved; ``loopwise.report.sections`` says of what form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..read.query import span
from ..read.saved_run import SavedRun, open_run
from ..rules import SEVERITIES, Finding
from .comparison import comparison
from .layers import distributions, heat_maps
from .scalars import scalars
from .steps import Reader

SHOWN = 100
"""Findings with their plots; further ones are words alone."""
LATEST = 50
"""Events."""


def sections(path: str, other: str | None = None) -> list[dict[str, Any]]:
    """Findings, losses and metrics, layers, distributions, what was saved, and where two runs part.

    Args:
        path: of a run.
        other: of a run to compare it with.
    """
    saved, reader = open_run(path), Reader(path)
    beside = None if other is None else (open_run(other), Reader(other))
    found = findings(saved)
    named = [name for each in found for name in each.tensors]
    shown = [
        _section("comparison", "Two runs", 15, comparison(saved, reader, beside)),
        _section("findings", "Findings", 20, _findings(saved, reader, found)),
        _section("metrics", "Loss and metrics", 30, scalars(saved, reader, beside)),
        *(
            _section(key, title, order, blocks)
            for key, title, order, blocks in (
                ("layers", "Layers", 40, heat_maps(reader)),
                ("distributions", "Distributions", 41, distributions(reader, named)),
            )
        ),
        _section("saved", "What was saved", 90, _saved(saved)),
    ]
    return [each for each in shown if each["blocks"]]


def _section(key: str, title: str, order: float, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": key, "title": title, "order": order, "blocks": blocks}


def findings(saved: SavedRun) -> list[Finding]:
    """What the run's own rules found while it went on, the worst first."""
    return sorted(saved.findings(), key=lambda each: (-SEVERITIES.index(each.severity), each.step))


def _findings(saved: SavedRun, reader: Reader, found: list[Finding]) -> list[dict[str, Any]]:
    notes = [_text(text) for text in _lacking(saved, reader)]
    if not saved.steps() and not found:
        return notes
    if not found:
        again = f"`loopwise debug findings {saved.path}` looks again with all rules."
        return [*notes, _text(f"No findings were recorded; {again}")]
    if len(found) > SHOWN:
        notes.append(_text(f"{len(found):,} findings, the worst {SHOWN} of them with their plots."))
    return notes + [_finding(each, number < SHOWN) for number, each in enumerate(found)]


def _lacking(saved: SavedRun, reader: Reader) -> Iterator[str]:
    """What of the run is not there."""
    if saved.torn:
        yield f"{saved.torn:,} records were cut by the end of a process, or damaged; they are left out."
    ranks, last = saved.ranks, reader.last_steps()
    if ranks in ([], [0]):  # the main process saves for all
        return
    world = range(max(int(saved.info.get("world", 1)), ranks[-1] + 1))
    place = {step: number for number, step in enumerate(sorted(reader.index.blocks))}
    late = 0 if saved.ended else 1  # saved steps: ranks write beside the training, not all at once
    if len(place) <= late:
        return
    if missing := [str(rank) for rank in world if rank not in last]:
        yield f"Ranks {', '.join(missing)} of {len(world)} saved nothing, though others did."
    end = max(last.values())
    behind = [f"{rank} (step {step:,})" for rank, step in last.items() if place[end] - place[step] > late]
    if behind:
        yield f"Some ranks end before step {end:,}: {', '.join(behind)}."


def _finding(finding: Finding, drawn: bool = True) -> dict[str, Any]:
    keys = ("severity", "rule", "step", "what", "advice", "line")
    return {
        "kind": "finding",
        **{key: getattr(finding, key) for key in keys},
        "plot": _evidence(finding) if drawn else None,
    }


def _evidence(finding: Finding) -> dict[str, Any] | None:
    series = {name: points for name, points in finding.evidence.items() if points}
    if not series:
        return None
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if len(points) < 60 else "lines",
            "marker": {"size": 4},
            "name": name,
            "x": [step for step, _ in points],
            "y": [value for _, value in points],
        }
        for name, points in series.items()
    ]
    positive = [value for points in series.values() for _, value in points if value > 0]
    wide = len(positive) == sum(map(len, series.values())) and max(positive) > 100 * min(positive)
    layout = {
        "height": 220,
        "showlegend": True,
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"type": "log" if wide else "linear"},
        "shapes": [_line(finding.step, finding.severity)],
    }
    describe = f"Saved steps up to {finding.step:,} of {', '.join(series)}"
    return {"title": finding.rule.replace("_", " "), "describe": describe, "data": data, "layout": layout}


def _line(step: int, color: str) -> dict[str, Any]:
    """A line at a step."""
    ends = {"x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **ends, "line": {"color": color}}


def _saved(saved: SavedRun) -> list[dict[str, Any]]:
    steps, events = saved.steps(), saved.events
    if not steps and not events and not saved.torn:
        return []
    world = int(saved.info.get("world", 1))
    rows = [[f"steps of {mode}", span(saved.steps(mode))] for mode in saved.modes]
    rows += [
        [f"tensors and numbers in {name}", f"{len(saved.names(collection=name)):,}"]
        for name in saved.collections()
    ]
    rows.append(["ranks that saved", f"{', '.join(map(str, saved.ranks)) or 'none'} of {world}"])
    rows.append(["lost records", f"{saved.torn:,}"])
    blocks = [_table("Steps and tensors", ["", ""], rows)]
    if events:
        latest = [[each.get("step"), each["rank"], str(each["event"])] for each in events[-LATEST:]]
        title = "Events" if len(events) <= LATEST else f"The last {LATEST} of {len(events)} events"
        blocks.append(_table(title, ["step", "rank", "event"], latest))
    return blocks


def _text(text: str) -> dict[str, Any]:
    return {"kind": "text", "text": text}


def _table(title: str, columns: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    return {"kind": "table", "title": title, "columns": columns, "rows": rows}
