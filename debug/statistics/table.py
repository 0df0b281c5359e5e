"""Statistics of many tensors at once, as a table; which ones there are.

A statistic is a row of `STATISTICS`: which partial sums it needs and how it comes from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from loopwise.errors import InputError

from .chunk_sums import Partials
from .precision import full_precision
from .quantiles import BINS, PERCENTS, distributions
from .sums import Flat, flat, partials


@dataclass(frozen=True, slots=True)
class Statistic:
    """How a statistic is computed."""

    needs: tuple[str, ...]
    """Names of `Partials`, or ``quantiles`` or ``histogram``."""
    value: Callable[[Partials], torch.Tensor]
    """From float64 of shape (tensors,) to float64 of shape (tensors,) or (tensors, columns)."""
    absolute: bool = False
    """Of the absolute values."""
    columns: tuple[str, ...] = ()
    """Their names if there are several."""


def _extreme(name: str) -> Statistic:
    return Statistic((name,), lambda found: found[name].where(found["count"] > 0, math.nan))


def _own(name: str, columns: tuple[str, ...] = ()) -> Statistic:
    return Statistic((name,), lambda found: found[name], columns=columns)


def _variance(found: Partials) -> torch.Tensor:
    return found["spread"].clamp(min=0) / found["count"]


def _product(found: Partials) -> torch.Tensor:
    return found["logs"].exp2() * (1 - 2 * (found["negative"] % 2))


STATISTICS: dict[str, Statistic] = {
    "min": _extreme("min"),
    "max": _extreme("max"),
    "mean": Statistic(("sum",), lambda found: found["sum"] / found["count"]),
    "std": Statistic(("spread",), lambda found: _variance(found).sqrt()),
    "variance": Statistic(("spread",), _variance),
    "sum": _own("sum"),
    "prod": Statistic(("logs", "negative"), _product),
}
"""Name -> statistic.  ``std`` and ``variance`` are of the population (divided by the count), ``l1`` is the sum of
the absolute values, ``l2`` their Euclidean norm; those of a complex tensor are of its absolute values."""
STATISTICS |= {f"abs_{name}": replace(row, absolute=True) for name, row in STATISTICS.items()}
STATISTICS |= {
    "l1": STATISTICS["abs_sum"],
    "l2": Statistic(("squares",), lambda found: found["squares"].sqrt()),
    **{name: _own(name) for name in ("count", "nan", "inf", "zero", "subnormal")},
    "quantiles": _own("quantiles", tuple(f"quantile_{percent}" for percent in PERCENTS)),
    "histogram": _own("histogram", ("bins_from", "bins_to", *(f"bin_{number}" for number in range(BINS)))),
}


def checked(names: Iterable[str]) -> tuple[str, ...]:
    """``names`` without repetitions, in order.

    Raises:
        InputError: a name is not one of `STATISTICS`.
    """
    given = tuple(dict.fromkeys((names,) if isinstance(names, str) else names))
    unknown = [name for name in given if name not in STATISTICS]
    if unknown:
        raise InputError(
            f"{'the statistic' if len(unknown) == 1 else 'the statistics'} {', '.join(map(repr, unknown))}",
            f"names among {', '.join(STATISTICS)}",
            "a misspelt name, or one of another library",
            "use the names above",
        )
    return given


def columns(names: Sequence[str]) -> tuple[str, ...]:
    """The names of a table's columns: those of the statistics, or ``quantile_1`` ... where one has several."""
    return tuple(column for name in checked(names) for column in STATISTICS[name].columns or (name,))


def table(tensors: Sequence[torch.Tensor], names: Sequence[str]) -> torch.Tensor:
    """Statistics of tensors of any shape, layout and dtype.

    A NaN in a tensor makes its statistics NaN, except the counts and the histogram.  An empty tensor has the
    sums and counts 0, the product 1 and otherwise NaN.  A sparse tensor's zeros count.  All are within 1e-5 of
    what NumPy finds in float64 (sums that cancel: within 1e-6 of that of the absolute values).  Autograd
    records nothing.  On an accelerator nothing waits for the device (but coalescing a sparse COO tensor
    does), and some 80 MB are needed for the time being.

    Args:
        tensors: on one device; of a distributed tensor the local part.
        names: of `STATISTICS`.

    Returns:
        float64 of shape (len(tensors), len(columns(names))) on the tensors' device.

    Raises:
        InputError: unknown names, or tensors on several devices.
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
    with torch.inference_mode(False), torch.no_grad(), full_precision(device):
        if not tensors or not rows:
            return torch.zeros(len(tensors), len(columns(names)), dtype=torch.float64, device=device)
        flats = [flat(tensor) for tensor in tensors]
        found = {absolute: _found(flats, rows, absolute) for absolute in {row.absolute for row in rows}}
        values = [row.value(found[row.absolute]) for row in rows]
        return torch.cat([value.view(len(tensors), -1) for value in values], dim=1)


def single(value: torch.Tensor, statistic: str) -> float:
    """One statistic of one tensor.

    Raises:
        InputError: there is no such statistic, or it is several numbers.
    """
    several = (name for name, row in STATISTICS.items() if statistic in row.columns)
    names = [next(several, statistic)]
    heads = columns(names)
    if statistic not in heads:
        raise InputError(
            f"the statistic {statistic!r}",
            f"one number: {', '.join(heads)}",
            "it is several numbers",
            f"ask for {heads[0]!r}",
        )
    return float(table([value], names)[0, heads.index(statistic)])


def _found(flats: Sequence[Flat], rows: Sequence[Statistic], absolute: bool) -> Partials:
    """What those of ``rows`` need that are of the absolute values, or those that are not."""
    needs = {need for row in rows if row.absolute == absolute for need in row.needs}
    found = partials(flats, needs - {"quantiles", "histogram"}, absolute)
    if needs & {"quantiles", "histogram"}:
        found |= distributions(flats, needs)
    return found
