"""Comparison of two runs: the first step, and the first tensor in it, at which they differ."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch

from loopwise.errors import InputError

from ..store.index import Block
from .saved_run import SavedRun

T = TypeVar("T")
NAMED = 8
"""Largest number of steps or tensors of only one run that a text names."""
PIECE = 2**22
"""Number of elements that are compared at a time, in float64."""


@dataclass(frozen=True, slots=True)
class Only:
    """Steps and names that only one of two runs has, each as a pair: of the first run, of the second."""

    steps: tuple[list[int], list[int]]
    names: tuple[list[str], list[str]]

    def rows(self) -> Iterator[tuple[int, int, str, str]]:
        """Yield the run (0 or 1), the number of its steps or tensors, the word for them, and the first of them."""
        for run in range(2):
            for what, several in (("steps", self.steps[run]), ("tensors", self.names[run])):
                if several:
                    first = ", ".join(map(str, several[:NAMED])) + (", ..." if len(several) > NAMED else "")
                    yield run, len(several), what, first


@dataclass(frozen=True, slots=True)
class Difference:
    """First difference between two runs."""

    step: int
    """Step counted over all modes."""
    name: str
    largest: float
    """Largest absolute difference; infinite if shapes differ, or if only one value is NaN or infinite."""
    rms: float
    """Root mean square of the differences."""
    only: Only


class Place(NamedTuple):
    """Place where the saved bytes of two runs differ."""

    step: int
    rank: int | None
    """Rank of the bytes; ``None`` for the whole step, if the two runs saved it from different ranks."""


def compare(
    saved: SavedRun,
    other: SavedRun,
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    collection: str | None = None,
    regex: str | None = None,
    step: int | None = None,
    rank: int | None = None,
) -> Difference | None:
    """Compare the steps that both runs have until a tensor differs.

    Tensors are compared in order of appearance (for inputs and outputs, the order of computation) and in the dtype
    in which they were saved.  If one run has only statistics, these are compared.  NaN equals NaN.

    Args:
        saved: the first run.
        other: the second run.
        rtol: allowed difference as a fraction of the second run's value.
        atol: allowed absolute difference besides.
        collection: compare only this collection.
        regex: compare only names that it is found in.
        step: compare only this step, which both have.
        rank: compare only tensors that this rank saved; default: tensors of all ranks, shards joined.

    Returns:
        The first difference; ``None`` if all steps and tensors that both runs have are equal.

    Raises:
        InputError: ``regex`` is no regular expression.
        StateError: bytes are lost.
    """
    for number in _common(saved, other) if step is None else [step]:
        names = set(_names(other, regex, collection, number, rank))
        for name in _names(saved, regex, collection, number, rank):
            if name in names:
                largest_rms = _difference(*_pair(saved, other, name, number, rank), rtol, atol)
                if largest_rms is not None:
                    rest = only(saved, other, collection=collection, regex=regex)
                    return Difference(number, name, *largest_rms, rest)
    return None


def _common(saved: SavedRun, other: SavedRun) -> list[int]:
    others = set(other.steps())
    return [step for step in saved.steps() if step in others]


def _names(
    saved: SavedRun, regex: str | None, collection: str | None, step: int, rank: int | None
) -> list[str]:
    names = saved.names(regex, collection=collection, step=step)
    return names if rank is None else [name for name in names if saved.has(name, step, rank=rank)]


def only(
    saved: SavedRun, other: SavedRun, *, collection: str | None = None, regex: str | None = None
) -> Only:
    """Return the steps and names that only one of two runs has."""
    names = saved.names(regex, collection=collection), other.names(regex, collection=collection)
    return Only(_exclusive(saved.steps(), other.steps()), _exclusive(*names))


def _exclusive(first: list[T], second: list[T]) -> tuple[list[T], list[T]]:
    both = set(first) & set(second)
    return [x for x in first if x not in both], [x for x in second if x not in both]


def differing_blocks(saved: SavedRun, other: SavedRun) -> tuple[list[Place], int]:
    """Return where the blocks of common steps differ in layout, length or CRC-32, and the number of common steps."""
    equal_layouts = functools.cache(lambda first, second: first.groups == second.groups)

    def equal(first: Block, second: Block) -> bool:
        same_bytes = (first.length, first.crc32) == (second.length, second.crc32)
        return same_bytes and equal_layouts(first.layout, second.layout)

    common, places = _common(saved, other), []
    for step in common:
        ours, theirs = saved.blocks(step), other.blocks(step)
        if ours.keys() == theirs.keys():
            places += [Place(step, rank) for rank in ours if not equal(ours[rank], theirs[rank])]
        else:
            places.append(Place(step, None))
    return places, len(common)


def _pair(
    saved: SavedRun, other: SavedRun, name: str, step: int, rank: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both values of a tensor, or the statistics that both runs can give if one has only statistics."""
    first, second = (_read(run, name, step, rank) for run in (saved, other))
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first, second
    known = [set(statistics) for statistics in (first, second) if isinstance(statistics, dict)]
    keys = sorted(set.intersection(*known))
    ours, theirs = ([run.statistic(name, key, step, rank=rank) for key in keys] for run in (saved, other))
    return torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)


def _read(saved: SavedRun, name: str, step: int, rank: int | None) -> torch.Tensor | dict[str, float]:
    try:
        return saved.value(name, step, rank=rank)
    except InputError:
        return saved.statistics(name, step, rank=rank)


def _difference(
    first: torch.Tensor, second: torch.Tensor, rtol: float, atol: float
) -> tuple[float, float] | None:
    """Return largest and root mean square difference; ``None`` if every element is within the tolerances."""
    if first.shape != second.shape:
        return math.inf, math.inf
    largest, squares, differ = 0.0, 0.0, False
    for ours, theirs in zip(_pieces(first), _pieces(second), strict=True):
        if ours.dtype == theirs.dtype and torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)):
            continue
        gap, size = _gap(ours, theirs)
        differ = differ or bool((gap > atol + rtol * size).any())
        largest = max(largest, float(gap.max()))
        squares += float(gap.square().sum())
    return (largest, math.sqrt(squares / first.numel())) if differ else None


def _pieces(tensor: torch.Tensor) -> list[torch.Tensor]:
    flat = tensor.reshape(-1)
    return [flat[start : start + PIECE] for start in range(0, flat.numel(), PIECE)]


def _gap(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return absolute differences, and the absolute values of ``theirs`` (0 if not finite), in float64."""
    wide = torch.complex128 if ours.is_complex() or theirs.is_complex() else torch.float64
    a, b = ours.to(wide), theirs.to(wide)
    gap = (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    same = (a == b) | (a.isnan() & b.isnan())
    if ours.dtype == theirs.dtype and not (ours.is_floating_point() or ours.is_complex()):
        same, gap = ours == theirs, gap.clamp(min=1.0)  # different large integers can be equal as floats
    return gap.masked_fill(same, 0.0), b.abs().masked_fill(~b.isfinite(), 0.0)
