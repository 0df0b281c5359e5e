"""Sections of the page about the records of a ``Watch``; ``loopwise.report.sections`` specifies the format."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

from loopwise.sections import Block, left_out, section, table, text
from loopwise.sections import finding as finding_block

from ..read.query import span
from ..read.saved_run import SavedRun, open_run
from ..rules import SEVERITIES, Finding
from . import comparison, distributions, histograms, in_short, layers, scalars

READ_AGAIN = 8
"""Scalars that are kept after they were read: those of the first paragraph are plotted, too."""
SHOWN = 100
"""Number of findings that are shown with plots; further findings are text alone."""
NAMED = 20
"""Largest number of ranks that are named because they saved nothing."""
LATEST = 50
"""Largest number of events on the page."""


def sections(path: str, *others: str) -> list[dict[str, Any]]:
    """Return findings, losses and metrics, layers, what was saved, and a comparison of runs.

    Args:
        path: folder or fsspec URL of a run.
        others: folders or URLs of runs to compare it with.
    """
    saved, beside = open_run(path), [open_run(other) for other in others]
    findings = worst_first(saved)
    named = [name for finding in findings for name in finding.tensors]
    read = functools.lru_cache(READ_AGAIN)(functools.partial(scalars.by_mode, saved))
    return [
        *section(
            "findings",
            "Findings",
            5,
            [*_findings(saved, findings), *in_short.sentences(saved, findings, read)],
        ),
        *section("metrics", "Loss and metrics", 8, scalars.blocks(saved, read, *beside)),
        *section("comparison", "Runs compared", 15, comparison.blocks(saved, *beside)),
        *section("layers", "Layers", 40, _layers(saved, named)),
        *section("saved", "What was saved", 90, _saved(saved)),
    ]


def overview(path: str) -> dict[str, Any]:
    """Return last step, last loss and the number of findings, for a list of runs."""
    saved = open_run(path)
    steps = saved.steps()
    if not steps and not saved.findings():
        return {}
    words = {
        "critical": ("critical", "critical"),
        "warning": ("warning", "warnings"),
        "info": ("remark", "remarks"),
    }
    findings = ", ".join(in_short.counted(saved.findings(), words))
    return {
        "step": steps[-1] if steps else None,
        "last loss": _last_loss(saved),
        "findings": findings or "none",
    }


def _last_loss(saved: SavedRun) -> float | None:
    """Return the loss of the last training step that saved one."""
    for name in saved.names(collection="losses")[:1]:
        for step in saved.steps()[: -LATEST - 1 : -1]:
            if saved.has(name, step) and saved.record(step)["mode"] == "train":
                return float(saved.value(name, step))
    return None


def _layers(saved: SavedRun, named: list[str]) -> list[Block]:
    return [*layers.blocks(saved), *distributions.blocks(saved, named), *histograms.blocks(saved, named)]


def worst_first(saved: SavedRun) -> list[Finding]:
    """Return the findings recorded during training, the most severe first."""
    return sorted(saved.findings(), key=lambda finding: (-SEVERITIES.index(finding.severity), finding.step))


def _findings(saved: SavedRun, findings: list[Finding]) -> list[Block]:
    notes = [*left_out(saved.torn), *(text(sentence) for sentence in _missing(saved))]
    if not saved.steps() and not findings:
        return notes
    if not findings:
        again = f"`loopwise debug findings {saved.path}` applies all rules again."
        return [*notes, text(f"No findings were recorded; {again}")]
    if len(findings) > SHOWN:
        notes.append(text(f"{len(findings):,} findings, the worst {SHOWN} of them with their plots."))
    return notes + [_finding(finding, number < SHOWN) for number, finding in enumerate(findings)]


def _missing(saved: SavedRun) -> Iterator[str]:
    """Yield sentences about ranks that are missing or behind."""
    ranks, last = saved.ranks, saved.last_steps()
    if ranks in ([], [0]):  # the main process saves for all
        return
    world = range(max(saved.info["world"], ranks[-1] + 1))
    place = {step: number for number, step in enumerate(saved.steps())}
    late = 0 if saved.ended else 1  # saved steps: ranks write beside the training, not all at once
    if len(place) <= late:
        return
    if count := len(world) - len(last):
        missing = map(str, itertools.islice((rank for rank in world if rank not in last), NAMED))
        more = f" and {count - NAMED:,} more" if count > NAMED else ""
        yield f"Ranks {', '.join(missing)}{more} of {len(world)} saved nothing, though others did."
    end = max(last.values())
    behind = [f"{rank} (step {step:,})" for rank, step in last.items() if place[end] - place[step] > late]
    if behind:
        yield f"Some ranks end before step {end:,}: {', '.join(behind)}."


def _finding(of: Finding, drawn: bool = True) -> Block:
    plot = _evidence(of) if drawn else None
    shown = _plots(of)
    tensors = tuple(dict.fromkeys((*of.tensors, *of.evidence)))
    return finding_block(of.severity, of.rule, of.step, of.what, of.advice, of.line, plot, tensors, shown)


def _plots(finding: Finding) -> list[str]:
    """Return the titles of the page's plots that show what a finding is about."""
    names = dict.fromkeys(name.partition(",")[0] for name in (*finding.tensors, *finding.evidence))
    return [scalars.LOSSES if name.startswith("loss") else name for name in names]


def _evidence(finding: Finding) -> Block | None:
    series = {name: points for name, points in finding.evidence.items() if points}
    if not series:
        return None
    data = []
    for name, points in series.items():
        steps, values = map(list, zip(*points, strict=True))
        style = {"mode": "lines+markers" if len(points) < 60 else "lines", "marker": {"size": 4}}
        data.append({"type": "scatter", "name": name, "x": steps, "y": values, **style})
    positive = [value for points in series.values() for _, value in points if value > 0]
    wide = len(positive) == sum(map(len, series.values())) and max(positive) > 100 * min(positive)
    line = {"type": "line", "x0": finding.step, "x1": finding.step, "y0": 0, "y1": 1, "yref": "paper"}
    layout = {
        "height": 220,
        "showlegend": True,
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"type": "log" if wide else "linear"},
        "shapes": [{**line, "line": {"color": finding.severity}}],
    }
    describe = f"Saved steps up to {finding.step:,} of {', '.join(series)}"
    return {"title": finding.rule.replace("_", " "), "describe": describe, "data": data, "layout": layout}


def _saved(saved: SavedRun) -> list[Block]:
    steps, events = saved.steps(), saved.events
    if not steps and not events and not saved.torn:
        return []
    world = saved.info["world"]
    rows = [[f"steps of {mode}", span(saved.steps(mode))] for mode in saved.modes]
    counts = {name: len(saved.names(collection=name)) for name in saved.collections()}
    rows += [[f"tensors and numbers in {name}", f"{count:,}"] for name, count in counts.items()]
    rows.append(["ranks that saved", f"{', '.join(map(str, saved.ranks)) or 'none'} of {world}"])
    rows.append(["lost records", f"{saved.torn:,}"])
    blocks = [table("Steps and tensors", ["", ""], rows)]
    if events:
        latest = [[event.get("step"), event["rank"], str(event["event"])] for event in events[-LATEST:]]
        title = "Events" if len(events) <= LATEST else f"The last {LATEST} of {len(events)} events"
        blocks.append(table(title, ["step", "rank", "event"], latest))
    return blocks
