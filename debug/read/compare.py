"""Two runs side by side: the first step, and there the first tensor, where they part."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch

from loopwise.errors import InputError

from .saved_run import SavedRun

T = TypeVar("T")
PIECE = 2**22
"""Elements compared at a time, in float64."""


@dataclass(frozen=True, slots=True)
class Only:
    """What one of two runs has and the other has not, each as (of the first, of the second)."""

    steps: tuple[list[int], list[int]]
    names: tuple[list[str], list[str]]


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two runs part."""

    step: int
    """Over all modes."""
    name: str
    largest: float
    """Largest absolute difference; infinite where shapes differ, or one is NaN or infinite and the other not."""
    rms: float
    """Root mean square of the differences."""
    only: Only


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
) -> Parting | None:
    """Go through the steps that both have until a tensor differs.

    Tensors are taken in order of appearance, which is that of computation for inputs and outputs, and
    are compared as they were saved; as statistics where one of the two has only those.  NaN equals NaN.

    Args:
        saved: the first.
        other: the second.
        rtol: fraction of the second's value that a difference may have.
        atol: difference allowed besides.
        collection: compare this collection only.
        regex: compare names that it is found in only.
        step: compare this one only, which both have.
        rank: compare what it saved only; default: what all ranks saved, put together.

    Returns:
        ``None`` where they nowhere part in what both have; ``only`` says what just one has.

    Raises:
        InputError: a regular expression that is none.
        StateError: bytes that are lost.
    """
    for each in _common(saved, other) if step is None else [step]:
        there = set(_names(other, regex, collection, each, rank))
        for name in _names(saved, regex, collection, each, rank):
            if name in there:
                found = _difference(*_pair(saved, other, name, each, rank), rtol, atol)
                if found is not None:
                    return Parting(each, name, *found, only(saved, other, collection=collection, regex=regex))
    return None


def _common(saved: SavedRun, other: SavedRun) -> list[int]:
    others = set(other.steps())
    return [step for step in saved.steps() if step in others]


def _names(
    saved: SavedRun, regex: str | None, collection: str | None, step: int, rank: int | None
) -> list[str]:
    found = saved.names(regex, collection=collection, step=step)
    return found if rank is None else [name for name in found if saved.has(name, step, rank=rank)]


def only(
    saved: SavedRun, other: SavedRun, *, collection: str | None = None, regex: str | None = None
) -> Only:
    """Steps and names that just one of two runs has."""
    names = saved.names(regex, collection=collection), other.names(regex, collection=collection)
    return Only(_apart(saved.steps(), other.steps()), _apart(*names))


def _apart(first: list[T], second: list[T]) -> tuple[list[T], list[T]]:
    both = set(first) & set(second)
    return [x for x in first if x not in both], [x for x in second if x not in both]


def _pair(
    saved: SavedRun, other: SavedRun, name: str, step: int, rank: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What of a tensor can be compared: both values, or statistics that one of them has only."""
    first, second = (_saved(each, name, step, rank) for each in (saved, other))
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first, second
    known = [set(found) for found in (first, second) if isinstance(found, dict)]
    keys = sorted(set.intersection(*known))
    one, two = ([each.statistic(name, key, step, rank=rank) for key in keys] for each in (saved, other))
    return torch.tensor(one, dtype=torch.float64), torch.tensor(two, dtype=torch.float64)


def _saved(saved: SavedRun, name: str, step: int, rank: int | None) -> torch.Tensor | dict[str, float]:
    try:
        return saved.value(name, step, rank=rank)
    except InputError:
        return saved.statistics(name, step, rank=rank)


def _difference(
    first: torch.Tensor, second: torch.Tensor, rtol: float, atol: float
) -> tuple[float, float] | None:
    """Largest and root mean square difference; ``None`` where no element's is above what is allowed."""
    if first.shape != second.shape:
        return math.inf, math.inf
    largest, squares, apart = 0.0, 0.0, False
    for one, two in zip(_pieces(first), _pieces(second), strict=True):
        if one.dtype == two.dtype and torch.equal(one.view(torch.uint8), two.view(torch.uint8)):
            continue
        gap, size = _gap(one, two)
        apart = apart or bool((gap > atol + rtol * size).any())
        largest = max(largest, float(gap.max()))
        squares += float(gap.square().sum())
    return (largest, math.sqrt(squares / first.numel())) if apart else None


def _pieces(tensor: torch.Tensor) -> list[torch.Tensor]:
    flat = tensor.reshape(-1)
    return [flat[start : start + PIECE] for start in range(0, flat.numel(), PIECE)]


def _gap(one: torch.Tensor, two: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Absolute difference, and size of the second where it is finite; float64."""
    wide = torch.complex128 if one.is_complex() or two.is_complex() else torch.float64
    a, b = one.to(wide), two.to(wide)
    gap = (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    same = (a == b) | (a.isnan() & b.isnan())
    if one.dtype == two.dtype and not (one.is_floating_point() or one.is_complex()):
        same, gap = one == two, gap.clamp(min=1.0)  # large integers are equal as floats, but are not
    return gap.masked_fill(same, 0.0), b.abs().masked_fill(~b.isfinite(), 0.0)
