"""Records of one rank as arrays, for profile rules and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, compress
from typing import Any

import numpy as np
import numpy.typing as npt

from ..finding import Points

Floats = npt.NDArray[np.float64]
KINDS = ("data", "to_device", "forward", "backward", "optimizer")
"""Phases of a step that the profiler times; ``loopwise.debug.profiler.phases`` defines them."""
FIXED = ("step", "count", "time", "seconds", "longest", "workers", *KINDS, "loopwise", "other")
"""Columns of ``debug/phases``: the last step of the row, its number of steps, its end (seconds since the epoch), the
seconds of all its steps and of the longest one, worker processes of the loader, and the seconds of each phase."""
SHOWN = 100
"""Largest number of points, about, of a series in the evidence of a finding."""


@dataclass(frozen=True)
class Table:
    """Rows of numbers.

    Args:
        columns: names of the columns; ``table[name]`` is an array of shape ``(rows,)``.
        rows: numbers, of shape ``(rows, columns)``.
        modes: mode of each row; empty if rows have no mode.
    """

    columns: tuple[str, ...]
    rows: Floats
    modes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def __getitem__(self, column: str) -> Floats:
        return self.rows[:, self.columns.index(column)]

    def of(self, mode: str) -> Table:
        """Return the rows of a mode."""
        return self.where(np.array([row_mode == mode for row_mode in self.modes], bool))

    def where(self, chosen: npt.NDArray[np.bool_]) -> Table:
        """Return the rows for which ``chosen``, of shape ``(rows,)``, is true."""
        return Table(self.columns, self.rows[chosen], tuple(compress(self.modes, chosen.tolist())))


NONE = Table(FIXED, np.empty((0, len(FIXED))))
"""Empty table with the columns of ``debug/phases``."""


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Return a table of rows from JSON lines; rows of a wrong length are left out."""
    kept = [row for row in rows if isinstance(row, (list, tuple)) and len(row) == len(columns)]
    return Table(tuple(columns), np.array(kept, np.float64).reshape(len(kept), len(columns)))


def phases(records: Iterable[Mapping[str, Any]]) -> Table:
    """Return the records of ``debug/phases`` as one table; a phase that a record lacks took no time in it."""
    return joined([NONE, *map(part, records)])


def part(record: Mapping[str, Any]) -> Table:
    """Return one record of ``debug/phases`` as a table."""
    rows = [row for row in record["rows"] if len(row) == len(record["columns"]) + 1]
    numbers = np.array([row[1:] for row in rows], np.float64).reshape(len(rows), len(record["columns"]))
    return Table(tuple(record["columns"]), numbers, tuple(str(row[0]) for row in rows))


def joined(tables: Sequence[Table]) -> Table:
    """Return tables joined one behind the other; a column that a table lacks is zero in its rows."""
    kinds = dict.fromkeys(table.columns for table in tables)
    columns = tuple(dict.fromkeys(name for kind in kinds for name in kind))
    places = {kind: [columns.index(name) for name in kind] for kind in kinds}
    rows = np.zeros((sum(map(len, tables)), len(columns)))
    at = 0
    for table in tables:
        rows[at : at + len(table), places[table.columns]] = table.rows
        at += len(table)
    return Table(columns, rows, tuple(chain.from_iterable(table.modes for table in tables)))


def finite(values: Floats) -> Floats:
    """Return the finite values; a device may report NaN."""
    return values[np.isfinite(values)]


def percentiles(values: Floats, counts: Floats, of: Sequence[float]) -> list[float]:
    """Return weighted percentiles, for instance of the mean of each row, weighted by the row's number of steps."""
    order = np.argsort(values)
    reached = np.cumsum(counts[order])
    at = np.searchsorted(reached, np.asarray(of) / 100 * reached[-1]).clip(max=len(values) - 1)
    return [float(value) for value in values[order][at]]


@dataclass(frozen=True)
class Series:
    """Records of one rank, which profile rules look at.

    Attributes:
        start: start of the run, in seconds since the epoch.
        header: first line of ``debug/system``.
        system: samples of the machine, with the columns of the header.
        phases: rows of ``debug/phases``, of all modes.
        first: end of the first step, in seconds since the epoch; ``None`` if no step has ended.
    """

    start: float
    header: Mapping[str, Any]
    system: Table
    phases: Table
    first: float | None = None
    train: Table = field(init=False)
    """Rows of training steps, without the first one, which compiles and starts workers."""

    def __post_init__(self) -> None:
        train = self.phases.of("train")
        if len(train) and train["time"][0] == self.first:
            train = train.where(np.arange(len(train)) > 0)
        object.__setattr__(self, "train", train)

    @property
    def cores(self) -> int:
        """Number of the machine's cores."""
        return int(self.header.get("cores", 0))

    @property
    def usable(self) -> int:
        """Number of cores that the process may run on."""
        return int(self.header.get("usable", self.cores))

    def devices(self) -> list[str]:
        """Return the names of the devices that the training uses, such as ``gpu0``."""
        return [name for name in self.header.get("used", ()) if name in self.system]

    def utilization(self, samples: Table) -> dict[str, Floats]:
        """Return the utilization in per cent in some samples, for each device that reports it."""
        values = {name: finite(samples[name]) for name in self.devices()} if len(samples) else {}
        return {name: reported for name, reported in values.items() if len(reported)}

    def recent(self, samples: float) -> Table:
        """Return the last samples since the first step; an empty table if there are fewer."""
        since = self.system["time"] > (np.inf if self.first is None else self.first)
        if since.sum() < samples:
            return self.system.where(np.zeros_like(since))
        return self.system.where(np.arange(len(since)) >= len(since) - int(samples))

    def points(self, values: Mapping[str, Floats], of: Table) -> dict[str, Points]:
        """Return series as evidence of a finding, at the steps in which the rows of ``of`` were recorded."""
        if "step" in of:
            steps = of["step"]
        elif len(self.phases):
            at = np.searchsorted(self.phases["time"], of["time"]).clip(max=len(self.phases) - 1)
            steps = self.phases["step"][at]
        else:
            steps = np.zeros(len(of))
        every = max(1, -(-len(of) // SHOWN))
        return {
            name: [
                (int(step), float(value))
                for step, value in zip(steps[::every], series[::every], strict=True)
                if np.isfinite(value)
            ]
            for name, series in values.items()
        }
