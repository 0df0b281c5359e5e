"""What the page of a run shows of sifting; ``loopwise.report.sections`` says of what form."""

from __future__ import annotations

from typing import Any

from loopwise.run import read

COUNTS = ("seen", "skipped", "scored", "kept", "dropped", "trained", "batches", "not_finite")
SECONDS = ("loading", "scoring", "selecting", "training")


def sections(path: str, other: str | None = None) -> list[dict[str, Any]]:
    """What each epoch kept, and where its time went; ranks together.

    Args:
        path: of a run.
        other: not looked at: epochs of two runs are not set side by side.
    """
    records, torn = read(path, "sift", "epochs")
    epochs: dict[int, dict[str, float]] = {}
    for record in records:
        sums = epochs.setdefault(int(record["epoch"]), {})
        for name in (*COUNTS, *(f"{each}_seconds" for each in SECONDS)):
            sums[name] = sums.get(name, 0.0) + float(record.get(name, 0))
    if not epochs:
        return []
    blocks = [_summary(epochs, torn), _kept(epochs), _time(epochs), _table(epochs)]
    return [{"id": "sift", "title": "Sifting", "order": 80, "blocks": blocks}]


def _summary(epochs: dict[int, dict[str, float]], torn: int) -> dict[str, Any]:
    total = {name: sum(sums[name] for sums in epochs.values()) for name in next(iter(epochs.values()))}
    extra = total["scoring_seconds"] + total["selecting_seconds"]
    share = total["kept"] / total["seen"] if total["seen"] else 1.0
    text = (
        f"{total['kept']:,.0f} of {total['seen']:,.0f} samples were chosen ({share:.1%}). "
        f"Scoring and selecting took {extra:.1f} s beside {total['training_seconds']:.1f} s of training steps."
    )
    return {"kind": "text", "text": text + (f" {torn} torn records are left out." if torn else "")}


def _kept(epochs: dict[int, dict[str, float]]) -> dict[str, Any]:
    shares = [sums["kept"] / sums["seen"] if sums["seen"] else 1.0 for sums in epochs.values()]
    trace = {"type": "scatter", "mode": "lines+markers", "x": list(epochs), "y": shares, "name": "kept"}
    layout = {
        "height": 240,
        "xaxis": _epochs(epochs),
        "yaxis": {"tickformat": ".0%", "range": [0, 1.05]},
    }
    describe = f"Of the samples seen in each epoch, the share chosen for training: {shares[0]:.1%} first, {shares[-1]:.1%} last"
    return {"kind": "plot", "title": "Samples kept", "describe": describe, "data": [trace], "layout": layout}


def _epochs(epochs: dict[int, dict[str, float]]) -> dict[str, Any]:
    """The axis, with whole epochs at it."""
    return {"title": {"text": "epoch"}, "tick0": 0, "dtick": max(1, len(epochs) // 10)}


def _time(epochs: dict[int, dict[str, float]]) -> dict[str, Any]:
    data = [
        {
            "type": "bar",
            "name": each,
            "x": list(epochs),
            "y": [sums[f"{each}_seconds"] for sums in epochs.values()],
        }
        for each in SECONDS
    ]
    layout = {
        "height": 260,
        "barmode": "stack",
        "showlegend": True,
        "xaxis": _epochs(epochs),
        "yaxis": {"title": {"text": "seconds"}},
    }
    describe = f"Seconds of each epoch, {', '.join(SECONDS)}, over all ranks"
    return {"kind": "plot", "title": "Time", "describe": describe, "data": data, "layout": layout}


def _table(epochs: dict[int, dict[str, float]]) -> dict[str, Any]:
    names = [name for name in COUNTS if any(sums[name] for sums in epochs.values())]
    columns = ["epoch", *(name.replace("_", " ") for name in names)]
    rows = [[epoch, *(int(sums[name]) for name in names)] for epoch, sums in epochs.items()]
    return {"kind": "table", "title": "Samples and batches by epoch", "columns": columns, "rows": rows}
