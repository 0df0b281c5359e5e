"""Section of the page that compares two runs."""

from __future__ import annotations

from loopwise.errors import StateError
from loopwise.sections import Block, table, text

from ..read.compare import Difference, Place, compare, differing_blocks, only
from ..read.saved_run import SavedRun

COMPARED = 10
"""Blocks with different bytes that are compared tensor by tensor, until a tensor differs; each takes half a second."""
NAMED = 8
"""Steps or tensors of only one run that are named."""


def blocks(saved: SavedRun, other: SavedRun | None = None) -> list[Block]:
    """Return blocks about the first step and tensor at which two runs differ, and about what only one of them has."""
    if other is None or not (saved.steps() and other.steps()):
        return []
    rest = only(saved, other)
    rows = []
    for which, run in enumerate((saved, other)):
        for what, several in (("steps", rest.steps[which]), ("tensors", rest.names[which])):
            if several:
                named = ", ".join(map(str, several[:NAMED])) + (", ..." if len(several) > NAMED else "")
                rows.append([run.path, len(several), what, named])
    shown = [text(_sentences(saved, other))]
    if rows:
        shown.append(
            table("Steps and tensors of only one run", ["only in", "how many", "of what", "names"], rows)
        )
    return shown


def _sentences(saved: SavedRun, other: SavedRun) -> str:
    places, common = differing_blocks(saved, other)
    difference, place, lost = _first_difference(saved, other, places[:COMPARED])
    if difference is not None:
        of = "" if place.rank is None or len(saved.ranks) == 1 else f" of rank {place.rank}"
        sentences = (
            f"The two runs differ first at step {difference.step:,} in {difference.name}{of}: "
            f"largest difference {difference.largest:.4g}, root mean square {difference.rms:.4g}."
        )
    elif compared := len(places[:COMPARED]) - len(lost):
        sentences = f"All tensors of both runs are equal in the first {compared} saved steps of a rank whose bytes differ."
    elif lost:
        sentences = "The first difference cannot be determined."
    else:
        sentences = f"The two runs are equal in the {common:,} saved steps that both have."
    if lost:
        steps = ", ".join(f"{each.step:,}" for each in lost)
        sentences += f" Bytes of step {steps} are lost: `loopwise debug verify` lists them."
    return sentences


def _first_difference(
    saved: SavedRun, other: SavedRun, places: list[Place]
) -> tuple[Difference | None, Place, list[Place]]:
    """Return the first difference at some places, its place, and the places before it whose bytes are lost."""
    lost: list[Place] = []
    for place in places:
        try:
            difference = compare(saved, other, step=place.step, rank=place.rank)
        except StateError:
            lost.append(place)
            continue
        if difference is not None:
            return difference, place, lost
    return None, Place(0, None), lost
