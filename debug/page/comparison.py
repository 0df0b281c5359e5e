"""Section of the page that compares a run with others."""

from __future__ import annotations

from loopwise.errors import StateError
from loopwise.sections import Block, table, text

from ..read.compare import Place, compare, differing_blocks, only
from ..read.saved_run import SavedRun

COMPARED = 10
"""Blocks with different bytes that are compared tensor by tensor, until a tensor differs; each takes half a second."""


def blocks(saved: SavedRun, *others: SavedRun) -> list[Block]:
    """Return blocks about the first step and tensor at which each other run differs, and about what only one has."""
    return [block for other in others for block in _pair(saved, other, len(others) > 1)]


def _pair(saved: SavedRun, other: SavedRun, named: bool) -> list[Block]:
    if not (saved.steps() and other.steps()):
        return []
    rows = [[(saved, other)[run].path, *cells] for run, *cells in only(saved, other).rows()]
    shown = [text((f"{other.name}: " if named else "") + _sentences(saved, other))]
    if rows:
        columns = ["only in", "how many", "of what", "names"]
        shown.append(
            table("Steps and tensors of only one run" + (f", {other.name}" if named else ""), columns, rows)
        )
    return shown


def _sentences(saved: SavedRun, other: SavedRun) -> str:
    places, common = differing_blocks(saved, other)
    lost: list[Place] = []
    difference = None
    for place in places[:COMPARED]:
        try:
            difference = compare(saved, other, step=place.step, rank=place.rank)
        except StateError:
            lost.append(place)
        if difference is not None:
            break
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
        steps = ", ".join(f"{place.step:,}" for place in lost)
        sentences += f" Bytes of step {steps} are lost: `loopwise debug verify` lists them."
    return sentences
