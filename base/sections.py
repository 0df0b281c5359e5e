"""Build the sections that a part shows on the page of a run; ``loopwise.report.sections`` specifies their form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Block = dict[str, Any]


def section(id: str, title: str, order: float, blocks: Iterable[Block]) -> list[Block]:
    """Return a list of one section, or an empty list without blocks; sections are sorted by ``order``."""
    shown = list(blocks)
    return [{"id": id, "title": title, "order": order, "blocks": shown}] if shown else []


def summary(sentence: str, order: float) -> Block:
    """Return a sentence for the first paragraph of the page, in which sentences are sorted by ``order``."""
    return {"kind": "summary", "text": sentence, "order": order}


def text(paragraph: str) -> Block:
    """Return a paragraph."""
    return {"kind": "text", "text": paragraph}


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Block:
    """Return a table; cells are texts, numbers, booleans or ``None``."""
    return {"kind": "table", "title": title, "columns": list(columns), "rows": [list(row) for row in rows]}


def plot(
    title: str,
    describe: str,
    data: Sequence[Mapping[str, Any]],
    layout: Mapping[str, Any],
    frames: Mapping[str, Any] | None = None,
) -> Block:
    """Return a plot.

    Args:
        title: heading above the plot.
        describe: a description of the curves in words, for readers who cannot see them.
        data: traces, in the format of Plotly.
        layout: axes and sizes, in the format of Plotly.
        frames: histograms that a slider chooses from, see ``loopwise.report.sections``; default: no slider.
    """
    block = {"kind": "plot", "title": title, "describe": describe, "data": list(data), "layout": dict(layout)}
    return block if frames is None else block | {"frames": dict(frames)}


def choice(title: str, label: str, plots: Sequence[Block], of_layers: bool = False) -> Block:
    """Return a menu named ``label``, which shows one of the plots at a time, by its title.

    Args:
        title: heading above the plots.
        label: text before the menu.
        plots: the plots.
        of_layers: whether titles are names of modules or parameters; the plot then follows the selected layer.
    """
    return {"kind": "choice", "title": title, "label": label, "plots": list(plots), "of_layers": of_layers}


def layers(title: str, names: Sequence[str]) -> Block:
    """Return a list of layers with a search, whose selection holds for all plots of layers on the page."""
    return {"kind": "layers", "title": title, "names": list(names)}


def finding(
    severity: str,
    rule: str,
    step: int,
    what: str,
    advice: str,
    line: str = "",
    plot: Block | None = None,
    tensors: Sequence[str] = (),
    plots: Sequence[str] = (),
) -> Block:
    """Return a finding of a rule about one step, with the advice to the user.

    Args:
        severity: ``info``, ``warning`` or ``critical``.
        rule: name of the rule.
        step: step at which the rule saw the fault.
        what: sentence that says what is wrong.
        advice: the usual fixes.
        line: place in the user's code, or an empty text.
        plot: the numbers that show the fault.
        tensors: names of the modules and parameters that have the fault; each is a link that selects the layer.
        plots: titles of plots of the page to which the finding has links.
    """
    block = {"kind": "finding", "severity": severity, "rule": rule, "step": step, "what": what}
    block |= {"advice": advice, "line": line, "plot": plot}
    return block | {"tensors": list(tensors), "plots": list(plots)}


def left_out(lost: int) -> list[Block]:
    """Return a sentence about lost records, if there are any."""
    return (
        [text(f"{lost:,} records were cut by the end of a process, or damaged; they are left out.")]
        if lost
        else []
    )
