"""Sums over many tensors in one go: what the statistics of a tensor are computed from.

A tensor is cut into pieces, each piece is measured, and the pieces of a tensor are merged.  On the CPU
a large tensor's pieces stay in the cache while they are measured; small tensors, and everything on an
accelerator, are joined and measured together: few kernels, and no synchronisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

PARTIALS = {
    "sum": "sum",
    "squares": "sum",
    "spread": "sum",
    "min": "min",
    "max": "max",
    "prod": "prod",
    "nan": "sum",
    "inf": "sum",
    "zero": "sum",
    "subnormal": "sum",
}
"""Name -> how those of a tensor's pieces become one.  ``spread`` is the sum of squared distances from the
mean; to the sum of the pieces' spreads comes what their means are apart."""
COUNTED: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "nan": lambda values, _: values.isnan(),
    "inf": lambda values, _: values.isinf(),
    "zero": lambda values, _: values == 0,
    "subnormal": lambda values, smallest: (values != 0) & (values.abs() < smallest),
}
"""Name of a partial that is a count -> which values count, given the dtype's smallest normal number."""
SMALL, MANY = 2**11, 32
"""Tensors on the CPU of so many elements at most are joined if there are so many of them at least: others are
measured faster one by one (AMD EPYC)."""
CACHED = 2**18
"""Elements of a piece of a large tensor on the CPU: 1 MB of float32.  Half and twice as many take as long."""
SEGMENT = 2**16
"""Elements of a piece on an accelerator, which gives one block of threads to it; not measured."""
JOINED, JOINED_ELSEWHERE = 2**16, 2**21
"""Elements that are joined at once on the CPU (0.5 MB of float64) and on an accelerator (16 MB, and about four
times that at a time; not measured)."""
CANCELS = 8.0
"""Sum of squares of a piece, in spreads, above which the spread is not computed from it (in float32)."""
EXACT = 2**12
"""Values whose squares are summed in float32, which is off by at most 1e-6 then, and by 6e-5 for 2**17."""
LOST = 1e-26
"""Sum of squares of a piece below which single squares may have vanished in float32."""

Partials = dict[str, torch.Tensor]
"""Names of `PARTIALS`, and ``count`` -> float64 of shape (tensors,) or (pieces,)."""


class Flat(NamedTuple):
    """The elements of a tensor in any order."""

    values: torch.Tensor
    """1-D, of the tensor's dtype."""
    zeros: int
    """Zeros of a sparse tensor that are not among ``values``."""


def flat(tensor: torch.Tensor) -> Flat:
    """The elements of ``tensor``; a view where its memory is dense, be it in another order."""
    if tensor.layout is not torch.strided:
        stored = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor.values()
        return Flat(flat(stored).values, tensor.numel() - stored.numel())
    if not tensor.is_contiguous():
        strides = tensor.stride()
        tensor = tensor.permute(sorted(range(len(strides)), key=strides.__getitem__, reverse=True))
    return Flat(tensor.flatten(), 0)


def real(values: torch.Tensor) -> torch.Tensor:
    """As float32 or float64, whichever holds the dtype; the absolute values of complex ones."""
    if values.is_complex():
        values = (values.to(torch.complex64) if values.element_size() < 8 else values).abs()
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.to(torch.float32 if values.element_size() <= 2 else torch.float64)


def uploaded(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``numbers`` as a tensor, without waiting for the device."""
    row = torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    return row.to(device, non_blocking=True)


def partials(flats: Sequence[Flat], names: Set[str], absolute: bool = False) -> Partials:
    """Measure tensors.

    Args:
        flats: at least one, all on one device.
        names: of `PARTIALS`.
        absolute: measure the absolute values.

    Returns:
        ``names`` and ``count``, on that device.
    """
    device = flats[0].values.device
    on_cpu = device.type == "cpu"
    limit, size = (SMALL, CACHED) if on_cpu else (math.inf, SEGMENT)
    sizes = [values.numel() for values, _ in flats]
    small: dict[torch.dtype, list[int]] = {}
    large: list[int] = []
    for i, (values, _) in enumerate(flats):
        (large if sizes[i] > limit else small.setdefault(values.dtype, [])).append(i)
    if on_cpu and len(flats) - len(large) < MANY:
        small, large = {}, list(range(len(flats)))
    pieces = []
    for group in small.values():
        for batch in _batches([flats[i].values for i in group], JOINED if on_cpu else JOINED_ELSEWHERE):
            pieces.append(_measured_together(batch, size, names, absolute))
    if any(sizes[i] for i in large):
        pieces.append(_measured_apart([flats[i].values for i in large if sizes[i]], names, absolute))
    pieces = pieces or [_implied([0], device)]
    order = [*chain.from_iterable(small.values()), *large]
    columns = {*names, "sum", "count"}
    table = {name: torch.cat([piece[name] for piece in pieces]) for name in columns}
    merged = _merged(table, [-(-sizes[i] // size) for i in order])
    if any(zeros for _, zeros in flats):
        implied = _implied([flats[i].zeros for i in order], device)
        pairs = {name: torch.stack((merged[name], implied[name]), 1).view(-1) for name in merged}
        merged = _merged(pairs, [2] * len(flats))
    if order == list(range(len(order))):
        return merged
    places = uploaded(sorted(range(len(order)), key=order.__getitem__), torch.int64, device)
    return {name: column.index_select(0, places) for name, column in merged.items()}


def _batches(rows: Iterable[torch.Tensor], room: int) -> Iterator[list[torch.Tensor]]:
    """Parts of rows, of ``room`` elements at most together."""
    batch: list[torch.Tensor] = []
    held = 0
    for row in rows:
        for part in _cut(row, room):
            held += part.numel()
            if held > room:
                yield batch
                batch, held = [], part.numel()
            batch.append(part)
    if held:
        yield batch


def _cut(row: torch.Tensor, size: int) -> Sequence[torch.Tensor]:
    return (row,) if row.numel() <= size else torch.split(row, size)


def _measured_together(batch: list[torch.Tensor], size: int, names: Set[str], absolute: bool) -> Partials:
    """The pieces of ``batch``, which is of one dtype, of ``size`` elements or, last of a part, fewer."""
    smallest = _smallest_normal(batch[0].dtype)
    values = _numbers(torch.cat(batch), absolute).to(torch.float64)
    lengths = []
    for part in batch:
        full, rest = divmod(part.numel(), size)
        lengths += [size] * full + [rest] * (rest > 0)
    ends = uploaded(lengths, torch.int64, values.device)

    def reduced(column: torch.Tensor, how: str) -> torch.Tensor:
        return torch.segment_reduce(column, how, lengths=ends, unsafe=True)

    found = {"count": ends.to(torch.float64), "sum": reduced(values, "sum")}
    if "spread" in names:
        mean = (found["sum"] / found["count"]).repeat_interleave(ends, output_size=values.numel())
        found["spread"] = reduced((values - mean).square_(), "sum")
    if "squares" in names:
        found["squares"] = reduced(values.square(), "sum")
    for name in names & {"min", "max", "prod"}:
        found[name] = reduced(values, name)
    for name in names & COUNTED.keys():
        found[name] = reduced(COUNTED[name](values, smallest).to(torch.float64), "sum")
    return found


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def _measured_apart(rows: Sequence[torch.Tensor], names: Set[str], absolute: bool) -> Partials:
    """The pieces of large tensors on the CPU."""
    parts = [part for row in rows for part in _cut(row, CACHED)]
    extremes, counted = bool(names & {"min", "max"}), sorted(names & {"zero", "subnormal"})
    quick: list[torch.Tensor] = []
    squares = np.zeros((len(parts), 1 + CACHED // EXACT))
    for part, sums in zip(parts, squares, strict=True):
        values = _numbers(part, absolute)
        quick.append(values.sum())
        _add_squares(values.numpy(), sums)
        if extremes:
            quick += values.aminmax()
        if "prod" in names:
            quick.append(values.prod(dtype=torch.float64))
        for name in counted:
            quick.append(COUNTED[name](values, _smallest_normal(part.dtype)).count_nonzero())
    columns = ["sum", *["min", "max"] * extremes, *["prod"] * ("prod" in names), *counted]
    table = torch.stack(quick).to(torch.float64).view(len(parts), -1).numpy()
    found = dict(zip(columns, table.T, strict=True))
    found["count"] = np.array([part.numel() for part in parts], dtype=np.float64)
    found["squares"] = squares.sum(axis=1)
    found["spread"] = found["squares"] - found["sum"] ** 2 / found["count"]
    sure = (found["squares"] <= CANCELS * found["spread"]) & (found["squares"] >= LOST)
    for name in names & {"nan", "inf"}:
        found[name] = np.zeros(len(parts))
        for i in np.flatnonzero(~np.isfinite(found["sum"])):
            found[name][i] = COUNTED[name](_numbers(parts[i], absolute), 0.0).sum()
    for i in np.flatnonzero(~sure):
        found["sum"][i], found["squares"][i], found["spread"][i] = _moments(_numbers(parts[i], absolute))
    return {name: torch.from_numpy(column) for name, column in found.items()}


def _add_squares(values: np.ndarray[Any, Any], sums: np.ndarray[Any, Any]) -> None:
    """Sums of the squares of so few values each that they are exact enough in float32."""
    whole = len(values) // EXACT
    rows, rest = values[: whole * EXACT].reshape(whole, EXACT), values[whole * EXACT :]
    sums[:whole] = np.matmul(rows[:, None, :], rows[:, :, None])[:, 0, 0]
    sums[whole] = np.dot(rest, rest)


def _moments(values: torch.Tensor) -> tuple[float, float, float]:
    """Sum, squares and spread of values for which float32's sums are not sure."""
    if not values.count_nonzero():
        return 0.0, 0.0, 0.0
    values = values.double()
    total, squares = values.sum().item(), torch.dot(values, values).item()
    if math.isfinite(total):
        values = values - total / values.numel()
        rest = values.sum().item()
        return total + rest, squares, torch.dot(values, values).item() - rest * rest / values.numel()
    return total, squares, math.nan


def _numbers(part: torch.Tensor, absolute: bool) -> torch.Tensor:
    return real(part).abs() if absolute else real(part)


def _merged(pieces: Partials, lengths: Sequence[int]) -> Partials:
    """Partials of tensors from those of their pieces, of which the first ``lengths[0]`` are the first's."""
    if all(length == 1 for length in lengths):
        return pieces
    ends = uploaded(lengths, torch.int64, pieces["count"].device)

    def reduced(name: str, column: torch.Tensor) -> torch.Tensor:
        return torch.segment_reduce(column, PARTIALS.get(name, "sum"), lengths=ends, unsafe=True)

    merged = {name: reduced(name, column) for name, column in pieces.items() if name != "spread"}
    if "spread" in pieces:
        mean = merged["sum"] / merged["count"].clamp(min=1)
        apart = pieces["sum"] - pieces["count"] * mean.repeat_interleave(ends, output_size=len(pieces["sum"]))
        between = apart.square_() / pieces["count"].clamp(min=1)
        merged["spread"] = reduced("spread", pieces["spread"] + between)
    return merged


def _implied(zeros: Sequence[int], device: torch.device) -> Partials:
    """The partials of so many zeros each."""
    count = uploaded(zeros, torch.float64, device)
    none = torch.zeros_like(count)
    neutral = torch.where(count > 0, none, math.inf)
    return {
        **dict.fromkeys(PARTIALS, none),
        "count": count,
        "zero": count,
        "min": neutral,
        "max": torch.where(count > 0, none, -math.inf),
        "prod": (count == 0).to(torch.float64),
    }


def _smallest_normal(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).tiny if dtype.is_floating_point or dtype.is_complex else 0.0
