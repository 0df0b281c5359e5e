"""Section of the page of a run about sifting; ``loopwise.report.sections`` specifies the format."""

from __future__ import annotations

from typing import Any

from loopwise.run import read
from loopwise.sections import Block, plot, section, table, text

from .report import ACTIVITIES

COUNTS = ("seen", "skipped", "scored", "kept", "dropped", "trained", "batches", "not_finite")

Epochs = dict[int, dict[str, float]]
"""Sums over all ranks by name, by epoch."""


def sections(path: str, other: str | None = None) -> list[Block]:
    """Return a section with the kept samples and the times of each epoch, summed over the ranks.

    Args:
        path: folder or URL of the run.
        other: another run, which this section does not use: epochs of two runs are not compared.
    """
    records, torn = read(path, "sift", "epochs")
    epochs: Epochs = {}
    for record in records:
        sums = epochs.setdefault(int(record["epoch"]), {})
        for name in (*COUNTS, *(f"{activity}_seconds" for activity in ACTIVITIES)):
            sums[name] = sums.get(name, 0.0) + float(record.get(name, 0))
    blocks = [_summary(epochs, torn), _kept(epochs), _time(epochs), _table(epochs)] if epochs else []
    return section("sift", "Sifting", 80, blocks)


def _summary(epochs: Epochs, torn: int) -> Block:
    total = {name: sum(sums[name] for sums in epochs.values()) for name in next(iter(epochs.values()))}
    extra = total["scoring_seconds"] + total["selecting_seconds"]
    share = total["kept"] / total["seen"] if total["seen"] else 1.0
    return text(
        f"{total['kept']:,.0f} of {total['seen']:,.0f} samples were chosen ({share:.1%}). "
        f"Scoring and selecting took {extra:.1f} s beside {total['training_seconds']:.1f} s of training steps."
        + (f" {torn} torn records are left out." if torn else "")
    )


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
