"""Sums over many tensors at once, from which their statistics are computed.

On the CPU a function in C computes the usual sums of the usual dtypes.  Otherwise a tensor is cut into pieces, each
piece is measured, and the sums of a tensor's pieces are merged.  On the CPU a large tensor's pieces stay in the cache
while they are measured.  Small tensors, and all tensors on an accelerator, are joined and measured together by few
kernels without synchronization.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from . import native
from .chunk_sums import LOST, Partials, apart, joined, uploaded

SMALL, MANY = 2**11, 32
"""Tensors on the CPU with at most ``SMALL`` elements are joined if there are at least ``MANY`` of them: others are
measured faster one by one (AMD EPYC)."""
CACHED = 2**18
"""Elements of a piece on the CPU: 1 MB of float32.  Half as many and twice as many take as long (AMD EPYC)."""
SEGMENT = 2**16
"""Elements of a piece on an accelerator, which one block of threads reads; the number was not tuned."""
JOINED, JOINED_ELSEWHERE = 2**16, 2**21
"""Elements that are joined at once on the CPU (0.5 MB of float64), and on an accelerator (16 MB, a multiple of
`SEGMENT`, and some four times that for temporary results; the number was not tuned)."""

NATIVE = {*native.COLUMNS, "nan", "inf"}
"""Sums that the function in C computes, or for which it finds the tensors to measure in another way."""


class Flat(NamedTuple):
    """The elements of a tensor in any order."""

    values: torch.Tensor
    """1-D, of the tensor's dtype."""
    zeros: int
    """Number of zeros of a sparse tensor that ``values`` does not contain."""


def flat(tensor: torch.Tensor) -> Flat:
    """Return the elements of a tensor; a view if its memory is dense, even if in another order."""
    if tensor.layout is not torch.strided:
        stored = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
        return Flat(flat(stored).values, tensor.numel() - stored.numel())
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if not tensor.is_contiguous():
        tensor = tensor.permute(np.argsort(tensor.stride())[::-1].tolist())
    return Flat(tensor.flatten(), 0)


def partials(flats: Sequence[Flat], names: Set[str], absolute: bool = False) -> Partials:
    """Measure tensors.

    Args:
        flats: at least one tensor, all on one device.
        names: names of sums, see `Partials`.
        absolute: measure the absolute values.

    Returns:
        The sums ``names`` and ``count``, on that device.
    """
    names = {*names, "count", *({"sum"} if "spread" in names else ())}
    if names <= NATIVE and flats[0].values.device.type == "cpu":
        sums = _natively(flats, names, absolute)
        if sums is not None:
            return sums
    return _by_pieces(flats, names, absolute)


@np.errstate(invalid="ignore")
def _natively(flats: Sequence[Flat], names: Set[str], absolute: bool) -> Partials | None:
    """Measure by the function in C, and again by pieces if its result is unreliable; ``None`` without a compiler."""
    supported = [i for i, flat in enumerate(flats) if flat.values.dtype in native.KINDS and not flat.zeros]
    measured = native.measure([flats[i].values for i in supported], absolute)
    if measured is None:
        return None
    table = np.empty((len(flats), len(native.COLUMNS)))
    table[supported] = measured
    sums = dict(zip(native.COLUMNS, table.T.copy(), strict=True)) | {
        name: np.zeros(len(flats)) for name in names & {"nan", "inf"}
    }
    reliable = np.zeros(len(flats), dtype=bool)
    reliable[supported] = True
    reliable &= np.isfinite(sums["sum"]) & (sums["squares"] < math.inf)
    reliable &= (sums["spread"] >= LOST) | ~(sums["min"] < sums["max"])
    if not reliable.all():
        doubtful = np.flatnonzero(~reliable)
        rest = [flats[int(i)] for i in doubtful]
        for name, column in _by_pieces(rest, names, absolute).items():
            sums[name][doubtful] = column.numpy()
    return {name: torch.from_numpy(sums[name]) for name in names}


def _by_pieces(flats: Sequence[Flat], names: Set[str], absolute: bool) -> Partials:
    device = flats[0].values.device
    size = CACHED if device.type == "cpu" else SEGMENT
    sizes = [values.numel() for values, _ in flats]
    small, large = _sorted(flats, sizes, device)
    pieces = []
    for group in small:
        for batch in _batches([flats[i].values for i in group], device):
            pieces.append(joined(batch, size, names, absolute))
    if any(sizes[i] for i in large):
        pieces.append(apart([flats[i].values for i in large if sizes[i]], size, names, absolute))
    order = [*chain.from_iterable(small), *large]
    lengths = [-(-sizes[i] // size) for i in order]
    if not pieces:
        pieces, lengths[0] = [_implied([0], names, device)], 1
    merged = _merged({name: torch.cat([piece[name] for piece in pieces]) for name in names}, lengths)
    if any(zeros for _, zeros in flats):
        implied = _implied([flats[i].zeros for i in order], names, device)
        pairs = {name: torch.stack((merged[name], implied[name]), 1).view(-1) for name in names}
        merged = _merged(pairs, [2] * len(flats))
    if order == list(range(len(order))):
        return merged
    places = uploaded(np.argsort(order).tolist(), torch.int64, device)
    return {name: column.index_select(0, places) for name, column in merged.items()}


def _sorted(
    flats: Sequence[Flat], sizes: Sequence[int], device: torch.device
) -> tuple[list[list[int]], list[int]]:
    """Return the indices of tensors to be joined, by dtype, and of tensors to be measured one by one."""
    small: dict[torch.dtype, list[int]] = {}
    large: list[int] = []
    limit = SMALL if device.type == "cpu" else math.inf
    for i, (values, _) in enumerate(flats):
        (large if sizes[i] > limit else small.setdefault(values.dtype, [])).append(i)
    if device.type == "cpu" and len(flats) - len(large) < MANY:
        return [], list(range(len(flats)))
    return list(small.values()), large


def _batches(rows: Iterable[torch.Tensor], device: torch.device) -> Iterator[list[torch.Tensor]]:
    room = JOINED if device.type == "cpu" else JOINED_ELSEWHERE
    batch: list[torch.Tensor] = []
    held = 0
    for row in rows:
        for part in torch.split(row, room) if row.numel() > room else (row,):
            held += part.numel()
            if held > room:
                yield batch
                batch, held = [], part.numel()
            batch.append(part)
    if held:
        yield batch


def _merged(pieces: Partials, lengths: Sequence[int]) -> Partials:
    """Return the sums of tensors from the sums of their pieces; the first tensor has ``lengths[0]`` pieces."""
    if all(length == 1 for length in lengths):
        return pieces
    ends = uploaded(lengths, torch.int64, pieces["count"].device)

    def reduced(column: torch.Tensor, how: str = "sum") -> torch.Tensor:
        return torch.segment_reduce(column, how, lengths=ends, unsafe=True)

    merged = {
        name: reduced(column, name if name in ("min", "max") else "sum") for name, column in pieces.items()
    }
    if "spread" in pieces:  # the distance between the means adds to it
        mean = merged["sum"] / merged["count"].clamp(min=1)
        off = pieces["sum"] - pieces["count"] * mean.repeat_interleave(ends, output_size=len(pieces["sum"]))
        merged["spread"] += reduced(off.square_() / pieces["count"].clamp(min=1))
    return merged


def _implied(zeros: Sequence[int], names: Set[str], device: torch.device) -> Partials:
    """Return the sums of tensors of zeros, from their numbers of elements."""
    count = uploaded(zeros, torch.float64, device)
    none = torch.zeros_like(count)
    sums = {
        "count": count,
        "zero": count,
        "min": torch.where(count > 0, none, math.inf),
        "max": torch.where(count > 0, none, -math.inf),
        "logs": torch.where(count > 0, -math.inf, none),
    }
    return {name: sums.get(name, none) for name in names}
