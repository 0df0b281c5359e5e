"""Table of statistics of many tensors at once.

`STATISTICS` lists each statistic with the sums that it needs and its formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from loopwise.errors import InputError

from ..torch_internals import outside_inference
from .chunk_sums import Partials
from .precision import full_precision
from .quantiles import BINS, PERCENTS, distributions
from .sums import Flat, flat, partials


@dataclass(frozen=True, slots=True)
class Statistic:
    """Formula of a statistic."""

    needs: tuple[str, ...]
    """Names of `Partials`, or ``quantiles`` or ``histogram``."""
    value: Callable[[Partials], torch.Tensor]
    """Function from sums of shape (tensors,) to float64 of shape (tensors,) or (tensors, columns)."""
    absolute: bool = False
    """Whether the absolute values are measured."""
    columns: tuple[str, ...] = ()
    """Names of the numbers if there are several."""


def _extreme(name: str) -> Statistic:
    return Statistic((name,), lambda sums: sums[name].where(sums["count"] > 0, math.nan))


def _own(name: str, columns: tuple[str, ...] = ()) -> Statistic:
    return Statistic((name,), lambda sums: sums[name], columns=columns)


def _variance(sums: Partials) -> torch.Tensor:
    return sums["spread"].clamp(min=0) / sums["count"]


def _product(sums: Partials) -> torch.Tensor:
    return sums["logs"].exp2() * (1 - 2 * (sums["negative"] % 2))


STATISTICS: dict[str, Statistic] = {
    "min": _extreme("min"),
    "max": _extreme("max"),
    "mean": Statistic(("sum",), lambda sums: sums["sum"] / sums["count"]),
    "std": Statistic(("spread",), lambda sums: _variance(sums).sqrt()),
    "variance": Statistic(("spread",), _variance),
    "sum": _own("sum"),
    "prod": Statistic(("logs", "negative"), _product),
}
"""Name -> statistic.  ``std`` and ``variance`` are divided by the count, ``l1`` is the sum of the absolute values,
``l2`` the Euclidean norm; statistics of a complex tensor are computed from its absolute values."""
STATISTICS |= {f"abs_{name}": replace(row, absolute=True) for name, row in STATISTICS.items()}
STATISTICS |= {
    "l1": STATISTICS["abs_sum"],
    "l2": Statistic(("squares",), lambda sums: sums["squares"].sqrt()),
    **{name: _own(name) for name in ("count", "nan", "inf", "zero", "subnormal")},
    "quantiles": _own("quantiles", tuple(f"quantile_{percent}" for percent in PERCENTS)),
    "histogram": _own("histogram", ("bins_from", "bins_to", *(f"bin_{number}" for number in range(BINS)))),
}


def checked(names: Iterable[str]) -> tuple[str, ...]:
    """Return valid names without repetitions, in order.

    Raises:
        InputError: a name is not in `STATISTICS`.
    """
    listed = tuple(dict.fromkeys((names,) if isinstance(names, str) else names))
    unknown = [name for name in listed if name not in STATISTICS]
    if unknown:
        raise InputError(
            f"{'the statistic' if len(unknown) == 1 else 'the statistics'} {', '.join(map(repr, unknown))}",
            f"names among {', '.join(STATISTICS)}",
            "a typo, or a name of another library",
            "use the names above",
        )
    return listed


def columns(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a table's columns: a statistic's name, or its ``columns`` if it consists of several numbers."""
    return tuple(column for name in checked(names) for column in STATISTICS[name].columns or (name,))


def table(tensors: Sequence[torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    """Compute statistics of tensors of any shape, layout and dtype.

    NaN in a tensor makes its statistics NaN, except the counts and the histogram.  Sums and counts of an empty tensor are
    0, its product is 1, all else is NaN.  A sparse tensor's zeros count.  Results are within 1e-5 of NumPy's in float64
    (sums that cancel: within 1e-6 of the sum of the absolute values).  Autograd records nothing.  On an accelerator the
    function does not wait for the device (except to coalesce a sparse COO tensor), and needs some 80 MB while it runs.

    Args:
        tensors: tensors on one device; of a distributed tensor the local part.
        names: names in `STATISTICS`.

    Returns:
        float64 of shape (len(tensors), len(columns(names))) on the tensors' device.

    Raises:
        InputError: a name is unknown, or the tensors are on several devices.
    """
    rows = [STATISTICS[name] for name in checked(names)]
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise InputError(
            f"tensors on {', '.join(sorted(map(str, devices)))}",
            "tensors on one device",
            "a model on several devices, or state of an optimizer that stays on the CPU",
            "make one table for each device",
        )
    device = next(iter(devices), torch.device("cpu"))
    with outside_inference(), torch.no_grad(), full_precision(device):
        if not tensors or not rows:
            return torch.zeros(len(tensors), len(columns(names)), dtype=torch.float64, device=device)
        flats = [flat(tensor) for tensor in tensors]
        sums = {absolute: _sums(flats, rows, absolute) for absolute in {row.absolute for row in rows}}
        values = [row.value(sums[row.absolute]) for row in rows]
        return torch.cat([value.view(len(tensors), -1) for value in values], dim=1)


def single(value: torch.Tensor, statistic: str) -> float:
    """Compute one statistic of one tensor.

    Raises:
        InputError: the statistic is unknown, or consists of several numbers.
    """
    several = (name for name, row in STATISTICS.items() if statistic in row.columns)
    names = [next(several, statistic)]
    heads = columns(names)
    if statistic not in heads:
        raise InputError(
            f"the statistic {statistic!r}",
            f"one number: {', '.join(heads)}",
            "it is several numbers",
            f"ask for one of them, such as {heads[len(heads) // 2]!r}",
        )
    return float(table([value], names)[0, heads.index(statistic)])


def _sums(flats: Sequence[Flat], rows: Sequence[Statistic], absolute: bool) -> Partials:
    """Return the sums that statistics of the absolute values need, or the sums that the other statistics need."""
    needs = {need for row in rows if row.absolute == absolute for need in row.needs}
    sums = partials(flats, needs - {"quantiles", "histogram"}, absolute)
    if needs & {"quantiles", "histogram"}:
        sums |= distributions(flats, needs)
    return sums
