"""Where two runs part."""

from __future__ import annotations

import os
from typing import Any

from ..compare import compare, only
from ..index import Block
from ..trial import Trial
from .steps import Reader

LOOKED_AT = 10
"""Steps whose bytes differ that are compared tensor by tensor, until a tensor differs; it takes half a second a step."""
NAMED = 8
"""Steps or tensors named of what only one run has."""


class _Steps(Trial):
    """A trial of some steps only."""

    def __init__(self, path: str | os.PathLike[str], only: list[int]) -> None:
        super().__init__(path)
        self._only = only

    def steps(self, mode: str | None = None) -> list[int]:
        return self._only


def comparison(trial: Trial, other: Trial | None) -> list[dict[str, Any]]:
    """The first step and tensor where they part, and what only one of them has."""
    if other is None or not (trial.steps() and other.steps()):
        return []
    differing, common = _differing(trial, other)
    found = compare(_Steps(trial.path, differing[:LOOKED_AT]), other) if differing else None
    if found is not None:
        text = (
            f"They part at step {found.step:,} in {found.name}: largest difference {found.largest:.4g}, "
            f"root mean square {found.rms:.4g}."
        )
    elif differing:
        text = f"What both have is equal in the first {len(differing[:LOOKED_AT])} saved steps whose bytes differ."
    else:
        text = f"They nowhere part in the {common:,} saved steps that both have."
    apart = only(trial, other)
    rows = []
    for which, each in enumerate((trial, other)):
        for what, several in (("steps", apart.steps[which]), ("tensors", apart.names[which])):
            if several:
                named = ", ".join(map(str, several[:NAMED])) + (", ..." if len(several) > NAMED else "")
                rows.append([each.path, len(several), what, named])
    blocks: list[dict[str, Any]] = [{"kind": "text", "text": text}]
    if rows:
        columns = ["only in", "how many", "of what", "which"]
        blocks.append({"kind": "table", "title": "What only one has", "columns": columns, "rows": rows})
    return blocks


def _differing(trial: Trial, other: Trial) -> tuple[list[int], int]:
    """Common steps whose blocks are not the same bytes in the same layout, and the number of common steps."""
    first, second = Reader(trial.path), Reader(other.path)
    common = sorted(set(first.index.blocks) & set(second.index.blocks))
    same: dict[tuple[int, int], bool] = {}
    return [step for step in common if not _same(first.block(step), second.block(step), same)], len(common)


def _same(one: Block, two: Block, known: dict[tuple[int, int], bool]) -> bool:
    key = (id(one.layout), id(two.layout))
    if key not in known:
        known[key] = one.layout.groups == two.layout.groups
    return known[key] and (one.length, one.crc32) == (two.length, two.crc32)
