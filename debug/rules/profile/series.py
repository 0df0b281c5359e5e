"""What was recorded of one rank so far, as arrays: what profiler rules look at, and what the page shows."""

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
FIXED = ("step", "count", "time", "seconds", "longest", "workers", *KINDS, "loopwise", "other")
"""Of a row: its last step, how many it has, when it ended (seconds since the epoch), seconds of all its steps
and of the longest one, worker processes of the loader, and seconds of each phase."""
SHOWN = 100
"""Points of a series that a finding has as its evidence."""


@dataclass(frozen=True)
class Table:
    """Rows of numbers.

    Args:
        columns: their names; each is an item, an array of shape ``(rows,)``.
        rows: of shape ``(rows, columns)``.
        modes: of rows that have one.
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
        """Rows of a mode."""
        return self.where(np.array([each == mode for each in self.modes], bool))

    def where(self, chosen: npt.NDArray[np.bool_]) -> Table:
        """Some of the rows; ``chosen`` has shape ``(rows,)``."""
        return Table(self.columns, self.rows[chosen], tuple(compress(self.modes, chosen.tolist())))


NONE = Table(FIXED, np.empty((0, len(FIXED))))
"""Rows of ``debug/phases`` before the first."""


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table of rows as they are in JSON lines; rows of another length are left out."""
    kept = [row for row in rows if isinstance(row, (list, tuple)) and len(row) == len(columns)]
    return Table(tuple(columns), np.array(kept, np.float64).reshape(len(kept), len(columns)))


def phases(records: Iterable[Mapping[str, Any]]) -> Table:
    """Records of ``debug/phases`` as one table; a phase that a record does not have took no time in it."""
    return joined([NONE, *map(part, records)])


def part(record: Mapping[str, Any]) -> Table:
    """One record of ``debug/phases``."""
    rows = [row for row in record["rows"] if len(row) == len(record["columns"]) + 1]
    numbers = np.array([row[1:] for row in rows], np.float64).reshape(len(rows), len(record["columns"]))
    return Table(tuple(record["columns"]), numbers, tuple(str(row[0]) for row in rows))


def joined(tables: Sequence[Table]) -> Table:
    """One behind the other; a column that one does not have is zero in it."""
    kinds = dict.fromkeys(each.columns for each in tables)
    columns = tuple(dict.fromkeys(name for kind in kinds for name in kind))
    places = {kind: [columns.index(name) for name in kind] for kind in kinds}
    rows = np.zeros((sum(map(len, tables)), len(columns)))
    at = 0
    for each in tables:
        if each.columns == columns:
            rows[at : at + len(each)] = each.rows
        else:
            rows[at : at + len(each), places[each.columns]] = each.rows
        at += len(each)
    return Table(columns, rows, tuple(chain.from_iterable(each.modes for each in tables)))


def finite(values: Floats) -> Floats:
    """Those that are numbers: a device may not tell its own."""
    return values[np.isfinite(values)]


def percentiles(values: Floats, counts: Floats, of: Sequence[float]) -> list[float]:
    """Percentiles of values that stand for several each, such as a row's mean for its steps."""
    order = np.argsort(values)
    reached = np.cumsum(counts[order])
    at = np.searchsorted(reached, np.asarray(of) / 100 * reached[-1]).clip(max=len(values) - 1)
    return [float(value) for value in values[order][at]]


@dataclass(frozen=True)
class Series:
    """One rank's record.

    Attributes:
        start: when the run began, in seconds since the epoch.
        header: the first line of ``debug/system``.
        system: its samples; columns as the header says.
        phases: rows of ``debug/phases``, of all modes.
        first: when the first step ended, in seconds since the epoch; ``None``: none has.
    """

    start: float
    header: Mapping[str, Any]
    system: Table
    phases: Table
    first: float | None = None
    train: Table = field(init=False)
    """Rows of ``phases`` of training steps, without the first: it compiles, and starts workers."""

    def __post_init__(self) -> None:
        train = self.phases.of("train")
        if len(train) and train["time"][0] == self.first:
            train = train.where(np.arange(len(train)) > 0)
        object.__setattr__(self, "train", train)

    @property
    def cores(self) -> int:
        """Of the machine."""
        return int(self.header.get("cores", 0))

    @property
    def usable(self) -> int:
        """Cores that the process may run on."""
        return int(self.header.get("usable", self.cores))

    def devices(self) -> list[str]:
        """Names of the devices that the training uses: ``gpu0``."""
        return [name for name in self.header.get("used", ()) if name in self.system]

    def utilization(self, samples: Table) -> dict[str, Floats]:
        """What devices told of their utilisation in per cent in some samples, by name; not those that told nothing."""
        told = {name: finite(samples[name]) for name in self.devices()} if len(samples) else {}
        return {name: values for name, values in told.items() if len(values)}

    def recent(self, samples: float) -> Table:
        """The last samples since the first step; none where there are fewer."""
        since = self.system["time"] > (np.inf if self.first is None else self.first)
        if since.sum() < samples:
            return self.system.where(np.zeros_like(since))
        return self.system.where(np.arange(len(since)) >= len(since) - int(samples))

    def points(self, values: Mapping[str, Floats], of: Table) -> dict[str, Points]:
        """Series as the evidence of a finding, at the steps that their rows were taken in."""
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
                for step, value in zip(steps[::every], found[::every], strict=True)
                if np.isfinite(value)
            ]
            for name, found in values.items()
        }
