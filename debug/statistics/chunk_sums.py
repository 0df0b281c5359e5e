"""Sums over pieces of tensors: small tensors are joined, large ones are read piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from typing import Any

import numpy as np
import torch

Partials = dict[str, torch.Tensor]
"""Name -> float64 of shape (pieces,) or (tensors,).  Names are ``count``, ``sum``, ``squares``, ``spread`` (sum of
squared distances from the mean), ``min``, ``max``, ``logs`` (sum of log2 of the absolute values) and those of
`COUNTED`."""
Array = np.ndarray[Any, Any]

COUNTED: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    "nan": lambda values, _: values.isnan(),
    "inf": lambda values, _: values.isinf(),
    "zero": lambda values, _: values == 0,
    "negative": lambda values, _: values < 0,
    "subnormal": lambda values, smallest: (values != 0) & (values.abs() < smallest),
}
"""Key: name of a count.  Value: function of values and the smallest normal number of their dtype; true where a value counts."""
EXACT = 2**12
"""Number of values whose squares are summed in float32: the error is up to 1e-6 then, and 6e-5 for 2**17 values."""
CANCELS = 16.0
"""Sum of squares divided by the spread, above which the spread computed in float32 has an error of 1e-5."""
LOST = 1e-26
"""Sum of squares below which single squares may have vanished in float32."""


def uploaded(numbers: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return numbers as a tensor, without waiting for the device."""
    row = torch.tensor(numbers, dtype=dtype, device="cpu", pin_memory=device.type == "cuda")
    return row.to(device, non_blocking=True)


def real(values: torch.Tensor) -> torch.Tensor:
    """Return values as float32, or float64 if their dtype needs it; the absolute values of complex ones."""
    if values.is_complex():
        values = (values.to(torch.complex64) if values.element_size() < 8 else values).abs()
    if values.dtype in (torch.float32, torch.float64):
        return values
    return values.to(torch.float32 if values.element_size() <= 2 else torch.float64)


def joined(batch: list[torch.Tensor], size: int, names: Set[str], absolute: bool) -> Partials:
    """Measure the pieces of all rows by the same few operations, without waiting for the device.

    Args:
        batch: 1-D tensors of one dtype.
        size: elements of a piece; the last piece of a row may have fewer.
        names: names of sums, see `Partials`.
        absolute: measure the absolute values.
    """
    smallest = _smallest_normal(batch[0].dtype)
    values = _numbers(torch.cat(batch), absolute).to(torch.float64)
    lengths = []
    for row in batch:
        whole, rest = divmod(row.numel(), size)
        lengths += [size] * whole + [rest] * (rest > 0)
    ends = uploaded(lengths, torch.int64, values.device)

    def reduced(column: torch.Tensor, how: str = "sum") -> torch.Tensor:
        return torch.segment_reduce(column, how, lengths=ends, unsafe=True)

    sums = {"count": ends.to(torch.float64)}
    if names & {"sum", "spread"}:
        sums["sum"] = reduced(values)
    if "spread" in names:
        mean = (sums["sum"] / sums["count"]).repeat_interleave(ends, output_size=values.numel())
        sums["spread"] = reduced((values - mean).square_())
    if "squares" in names:
        sums["squares"] = reduced(values.square())
    if "logs" in names:
        sums["logs"] = reduced(values.abs().log2_())
    for name in names & {"min", "max"}:
        sums[name] = reduced(values, name)
    for name in names & COUNTED.keys():
        sums[name] = reduced(COUNTED[name](values, smallest).to(torch.float64))
    return sums


@np.errstate(over="ignore", under="ignore", invalid="ignore")
def apart(rows: Sequence[torch.Tensor], size: int, names: Set[str], absolute: bool) -> Partials:
    """Measure the pieces of rows on the CPU, where reading a number costs nothing; arguments are those of `joined`.

    Each piece stays in the cache while it is read a few times.  If a sum in float32 may be wrong, the piece is measured
    again in float64.
    """
    pieces = [piece for row in rows for piece in (torch.split(row, size) if row.numel() > size else (row,))]
    sums = _in_float32(pieces, names, absolute)
    doubtful = np.zeros(len(pieces), dtype=bool)
    if "sum" in sums:
        doubtful |= ~np.isfinite(sums["sum"])
    for name in names & {"nan", "inf"}:
        sums[name] = np.zeros(len(pieces))
        for i in np.flatnonzero(doubtful):
            sums[name][i] = _count(name, _numbers(pieces[i], absolute))
    if "squares" in sums:
        squares = sums["squares"]
        doubtful |= ~((squares >= LOST) & (squares < math.inf))
        if "spread" in names:
            sums["spread"] = squares - sums["sum"] ** 2 / sums["count"]
            doubtful |= ~(squares <= CANCELS * sums["spread"])
    for i in np.flatnonzero(doubtful):
        for name, value in _exact(_numbers(pieces[i], absolute)).items():
            if name in sums:
                sums[name][i] = value
    return {name: torch.from_numpy(column) for name, column in sums.items()}


def _in_float32(pieces: Sequence[torch.Tensor], names: Set[str], absolute: bool) -> dict[str, Array]:
    squared, extremes = bool(names & {"squares", "spread"}), bool(names & {"min", "max"})
    summed = bool(names & {"sum", "spread", "nan", "inf"})
    counts: dict[str, list[int]] = {name: [] for name in names & {"zero", "negative", "subnormal"}}
    numbers: dict[str, list[torch.Tensor]] = {"sum": [], "min": [], "max": [], "logs": []}
    squares: list[Array] = []
    for piece in pieces:
        values = _numbers(piece, absolute)
        if summed:
            numbers["sum"].append(values.sum())
        if squared:
            squares += _squares(values.numpy())
        if extremes:
            low, high = values.aminmax()
            numbers["min"].append(low)
            numbers["max"].append(high)
        if "logs" in names:
            numbers["logs"].append(values.double().abs().log2_().sum())
        for name, column in counts.items():
            column.append(_count(name, values, _smallest_normal(piece.dtype)))
    counts["count"] = [piece.numel() for piece in pieces]
    sums = {name: np.array(column, dtype=np.float64) for name, column in counts.items()}
    for name, values_of in numbers.items():
        if values_of:
            sums[name] = torch.stack(values_of).to(torch.float64).numpy()
    if squared:
        starts = np.cumsum([0, *(-(-piece.numel() // EXACT) for piece in pieces[:-1])])
        sums["squares"] = np.add.reduceat(np.concatenate(squares, axis=None, dtype=np.float64), starts)
    return sums


def _squares(values: Array) -> list[Array]:
    """Return sums of squares, each of `EXACT` values; the last one may be of fewer."""
    rest = len(values) % EXACT
    rows = values[: len(values) - rest].reshape(-1, 1, EXACT)
    sums = [np.matmul(rows, rows.reshape(-1, EXACT, 1))]  # starts no threads, and is faster than torch.dot
    if rest:
        sums.append(np.dot(values[-rest:], values[-rest:]))
    return sums


def _exact(values: torch.Tensor) -> dict[str, float]:
    if not values.count_nonzero():
        return {"sum": 0.0, "squares": 0.0, "spread": 0.0}
    values = values.double()
    total, squares, spread = values.sum().item(), torch.dot(values, values).item(), math.nan
    if math.isfinite(total):
        values = values - total / values.numel()
        rest = values.sum().item()
        total += rest
        spread = torch.dot(values, values).item() - rest * rest / values.numel()
    return {"sum": total, "squares": squares, "spread": spread}


def _count(name: str, values: torch.Tensor, smallest: float = 0.0) -> int:
    counted = COUNTED[name](values, smallest).numpy()
    return int(np.count_nonzero(counted))  # torch's sum takes five times as long


def _numbers(values: torch.Tensor, absolute: bool) -> torch.Tensor:
    return real(values).abs() if absolute else real(values)


def _smallest_normal(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).tiny if dtype.is_floating_point or dtype.is_complex else 0.0
