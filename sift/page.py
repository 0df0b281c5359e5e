"""Section of the page of a run about sifting; ``loopwise.report.sections`` specifies the format."""

from __future__ import annotations

from typing import Any

from loopwise.run import read
from loopwise.sections import Block, left_out, plot, section, summary, table, text
from loopwise.storage.json_lines import count, finite

from .report import ACTIVITIES

COUNTS = ("seen", "skipped", "scored", "kept", "dropped", "trained", "batches", "not_finite")

Epochs = dict[int, dict[str, float]]
"""Sums over all ranks by name, by epoch."""


def sections(path: str, *others: str) -> list[Block]:
    """Return a section with the kept samples and the times of each epoch, summed over the ranks.

    Args:
        path: folder or URL of the run.
        others: further runs, which this section does not use: epochs of several runs are not compared.
    """
    records, lost = read(path, "sift", "epochs", _epoch)
    epochs: Epochs = {}
    for epoch, numbers in records:
        sums = epochs.setdefault(epoch, dict.fromkeys(numbers, 0.0))
        for name, number in numbers.items():
            sums[name] += number
    blocks = [*_summary(epochs), _kept(epochs), _time(epochs), _table(epochs)] if epochs else []
    return section("sift", "Sifting", 80, [*blocks, *left_out(lost)])


def _epoch(record: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """Return the number of the epoch of a record, and the record's numbers by name."""
    names = (*COUNTS, *(f"{activity}_seconds" for activity in ACTIVITIES))
    return count(record["epoch"], below=2**53), {name: finite(record.get(name, 0)) for name in names}


def _summary(epochs: Epochs) -> list[Block]:
    total = {name: sum(sums[name] for sums in epochs.values()) for name in next(iter(epochs.values()))}
    extra = total["scoring_seconds"] + total["selecting_seconds"]
    share = total["kept"] / total["seen"] if total["seen"] else 1.0
    cost = f"Scoring and selecting took {extra:.1f} s beside {total['training_seconds']:.1f} s of training steps."
    out = f"{total['seen'] - total['kept']:,.0f}" if total["seen"] > total["kept"] else "none"
    left = f"Sifting left out {out} of {total['seen']:,.0f} samples ({1 - share:.0%})."
    return [
        text(f"{total['kept']:,.0f} of {total['seen']:,.0f} samples were chosen ({share:.1%}). {cost}"),
        summary(f"{left} {cost}", 60),
    ]


def _kept(epochs: Epochs) -> Block:
    shares = [sums["kept"] / sums["seen"] if sums["seen"] else 1.0 for sums in epochs.values()]
    trace = {"type": "scatter", "mode": "lines+markers", "x": list(epochs), "y": shares, "name": "kept"}
    layout = {"height": 240, "xaxis": _epoch_axis(epochs), "yaxis": {"tickformat": ".0%", "range": [0, 1.05]}}
    describe = "Share of the samples seen in each epoch that was chosen for training"
    return plot("Samples kept", f"{describe}: {shares[0]:.1%} first, {shares[-1]:.1%} last", [trace], layout)


def _time(epochs: Epochs) -> Block:
    def bars(activity: str) -> dict[str, Any]:
        seconds = [sums[f"{activity}_seconds"] for sums in epochs.values()]
        return {"type": "bar", "name": activity, "x": list(epochs), "y": seconds}

    layout = {"height": 260, "barmode": "stack", "showlegend": True}
    layout |= {"xaxis": _epoch_axis(epochs), "yaxis": {"title": {"text": "seconds"}}}
    describe = f"Seconds of each epoch, {', '.join(ACTIVITIES)}, summed over all ranks"
    return plot("Time", describe, [bars(activity) for activity in ACTIVITIES], layout)


def _epoch_axis(epochs: Epochs) -> dict[str, Any]:
    """Return an axis with ticks at whole epochs."""
    return {"title": {"text": "epoch"}, "tick0": 0, "dtick": max(1, len(epochs) // 10)}


def _table(epochs: Epochs) -> Block:
    names = [name for name in COUNTS if any(sums[name] for sums in epochs.values())]
    columns = ["epoch", *(name.replace("_", " ") for name in names)]
    rows = [[epoch, *(int(sums[name]) for name in names)] for epoch, sums in epochs.items()]
    return table("Samples and batches by epoch", columns, rows)
