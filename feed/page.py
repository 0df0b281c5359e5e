"""Section of the page of a run about feeding; ``loopwise.report.sections`` specifies the format."""

from __future__ import annotations

from typing import Any

from loopwise.run import read
from loopwise.sections import Block, section, table, text

COLUMNS = ("workers", "predicted, ms", "seen, ms")


def sections(path: str, other: str | None = None) -> list[Block]:
    """Return a section with the last diagnosis of the run: the verdict, and predicted beside measured times.

    Args:
        path: folder or URL of the run.
        other: another run, which this section does not use.
    """
    records, torn = read(path, "feed", "diagnosis")
    blocks = _blocks(records[-1]) if records else []
    if torn:
        blocks.append(text(f"{torn} torn records are left out."))
    return section("feed", "Feeding", 82, blocks)


def _blocks(record: dict[str, Any]) -> list[Block]:
    rows = [[workers, _ms(predicted), _ms(seen)] for workers, predicted, seen in record["steps"]]
    batch = [
        ["processor time of a batch in one worker, ms", _ms(record["cpu"])],
        ["waiting of a batch in one worker, ms", _ms(record["waiting"])],
        ["step with a batch at hand, ms", _ms(record["step"])],
        ["hand-over of a batch, ms", _ms(record["handover"])],
        ["batch, MB", record["bytes"] / 1e6],
        ["processors", record["processors"]],
    ]
    return [
        text(record["text"]),
        table("Time of a step", COLUMNS, rows),
        table("Measured", ("quantity", "value"), batch),
    ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * float(seconds), 3)
