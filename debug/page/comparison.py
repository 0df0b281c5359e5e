"""Where two runs part."""

from __future__ import annotations

from typing import Any, NamedTuple

from loopwise.errors import StateError

from ..read.compare import Parting, compare, only
from ..read.saved_run import SavedRun
from ..store.index import Block
from .steps import Reader

LOOKED_AT = 10
"""Blocks whose bytes differ that are compared tensor by tensor, until a tensor differs; it takes half a second each."""
NAMED = 8
"""Steps or tensors named of what only one run has."""


class _Place(NamedTuple):
    """Where bytes differ."""

    step: int
    rank: int | None
    """``None``: all together, for the runs have not the same ranks."""


def comparison(
    saved: SavedRun, reader: Reader, beside: tuple[SavedRun, Reader] | None = None
) -> list[dict[str, Any]]:
    """The first step and tensor where two runs part, and what only one of them has.

    Args:
        saved: a run.
        reader: of it.
        beside: the other run, and its reader.
    """
    if beside is None or not (saved.steps() and beside[0].steps()):
        return []
    other = beside[0]
    apart = only(saved, other)
    rows = []
    for which, each in enumerate((saved, other)):
        for what, several in (("steps", apart.steps[which]), ("tensors", apart.names[which])):
            if several:
                named = ", ".join(map(str, several[:NAMED])) + (", ..." if len(several) > NAMED else "")
                rows.append([each.path, len(several), what, named])
    blocks: list[dict[str, Any]] = [{"kind": "text", "text": _said(saved, reader, other, beside[1])}]
    if rows:
        columns = ["only in", "how many", "of what", "which"]
        blocks.append({"kind": "table", "title": "What only one has", "columns": columns, "rows": rows})
    return blocks


def _said(saved: SavedRun, reader: Reader, other: SavedRun, others: Reader) -> str:
    """Where they part, in words."""
    places, common = _differing(reader, others)
    found, place, lost = _parting(saved, other, places[:LOOKED_AT])
    if found is not None:
        of = "" if place.rank is None or len(reader.index.ranks) == 1 else f" of rank {place.rank}"
        text = (
            f"They part at step {found.step:,} in {found.name}{of}: largest difference {found.largest:.4g}, "
            f"root mean square {found.rms:.4g}."
        )
    elif looked := len(places[:LOOKED_AT]) - len(lost):
        text = f"What both have is equal in the first {looked} saved steps of a rank whose bytes differ."
    elif lost:
        text = "It cannot be said where they part."
    else:
        text = f"They nowhere part in the {common:,} saved steps that both have."
    if lost:
        steps = ", ".join(f"{each.step:,}" for each in lost)
        text += f" Bytes of step {steps} are lost: `loopwise debug verify` names them."
    return text


def _parting(
    saved: SavedRun, other: SavedRun, places: list[_Place]
) -> tuple[Parting | None, _Place, list[_Place]]:
    """The first that differs of some places, where it is, and the places before whose bytes are lost."""
    lost: list[_Place] = []
    for place in places:
        try:
            found = compare(saved, other, step=place.step, rank=place.rank)
        except StateError:
            lost.append(place)
            continue
        if found is not None:
            return found, place, lost
    return None, _Place(0, None), lost


def _differing(first: Reader, second: Reader) -> tuple[list[_Place], int]:
    """Where blocks of common steps are not the same bytes in the same layout, and the number of these steps."""
    common = sorted(set(first.index.blocks) & set(second.index.blocks))
    same: dict[tuple[int, int], bool] = {}
    places = []
    for step in common:
        one, two = first.index.blocks[step], second.index.blocks[step]
        if one.keys() == two.keys():
            places += [_Place(step, rank) for rank in sorted(one) if not _same(one[rank], two[rank], same)]
        else:
            places.append(_Place(step, None))
    return places, len(common)


def _same(one: Block, two: Block, known: dict[tuple[int, int], bool]) -> bool:
    key = (id(one.layout), id(two.layout))
    if key not in known:
        known[key] = one.layout.groups == two.layout.groups
    return known[key] and (one.length, one.crc32) == (two.length, two.crc32)
