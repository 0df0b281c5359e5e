"""Section of the page of a run about feeding; ``loopwise.report.sections`` specifies the format."""

from __future__ import annotations

from typing import Any

from loopwise.run import read
from loopwise.sections import Block, left_out, section, table, text
from loopwise.storage.json_lines import count, finite, texts

COLUMNS = ("workers", "predicted, ms", "seen, ms")


def sections(path: str, *others: str) -> list[Block]:
    """Return a section with the last diagnosis of the run: the verdict, and predicted beside measured times.

    Args:
        path: folder or URL of the run.
        others: further runs, which this section does not use.
    """
    diagnoses, lost = read(path, "feed", "diagnosis", _blocks)
    return section("feed", "Feeding", 82, [*(diagnoses[-1] if diagnoses else []), *left_out(lost)])


def _blocks(record: dict[str, Any]) -> list[Block]:
    """Return the blocks of a record; an error if the record is of another form."""
    texts([record["text"]])
    rows = [[count(workers), _ms(predicted), _ms(seen)] for workers, predicted, seen in record["steps"]]
    batch: list[list[Any]] = [
        ["processor time of a batch in one worker, ms", _ms(record["cpu"])],
        ["waiting of a batch in one worker, ms", _ms(record["waiting"])],
        ["step with a batch at hand, ms", _ms(record["step"])],
        ["hand-over of a batch, ms", _ms(record["handover"])],
        ["batch, MB", finite(record["bytes"]) / 1e6],
        ["processors", count(record["processors"])],
    ]
    return [
        text(record["text"]),
        table("Time of a step", COLUMNS, rows),
        table("Measured", ("quantity", "value"), batch),
    ]


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * finite(seconds), 3)
