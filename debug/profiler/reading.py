"""Reads what profilers recorded, of all ranks, also while a run goes on, and of runs that were killed."""

from __future__ import annotations

import io
import json
import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import fsspec
import numpy as np

from loopwise.errors import InputError
from loopwise.run import Run, listed

from ..rules import Finding
from ..rules.profile import series
from ..rules.profile.records import ProfileRules
from ..rules.profile.series import Table
from ..rules.thresholds import Rules, select
from .sampler import VERSION

Record = dict[str, Any]


@dataclass
class Session:
    """What one process recorded.

    Attributes:
        rank: its own.
        header: the first line of ``debug/system``.
        records: the lines of ``debug/system`` and ``debug/phases`` in the order in which they were
            written, each behind ``system`` or ``phases``; the ``row`` of a sample is an array of float64.
        operators: windows of ``torch.profiler``: lines of ``debug/operators``.
    """

    rank: int
    header: Record
    records: list[tuple[str, Record]] = field(default_factory=list)
    operators: list[Record] = field(default_factory=list)

    def system(self) -> Table:
        """Samples; rows of another length than the header's are left out."""
        return self._system

    def phases(self) -> Table:
        """Phases of steps."""
        return self._phases

    @cached_property
    def _system(self) -> Table:
        columns = tuple(self.header["columns"])
        rows = [record["row"] for name, record in self.records if name == "system"]
        rows = [row for row in rows if len(row) == len(columns)]
        numbers = np.frombuffer(b"".join(rows)).reshape(len(rows), len(columns))
        return Table(columns, numbers)

    @cached_property
    def _phases(self) -> Table:
        return series.phases(record for name, record in self.records if name == "phases")


def sessions(path: str | os.PathLike[str]) -> list[Session]:
    """What profilers recorded in a run, by rank and then by age; none where there was no profiler.

    Raises:
        InputError: there is no run, or a newer Loopwise recorded it.
    """
    run = Run.existing(path)
    files = {name: _files(run, name) for name in ("system", "phases", "operators")}
    found: list[Session] = []
    for rank, records in sorted(files["system"].items()):
        phases = dict(_parts(files["phases"].get(rank, [])))
        mine = [
            Session(rank, header, _merged(rows, phases[start][0] if start in phases else []))
            for start, (rows, header) in list(_parts(records))  # a part's lines come after it
        ]
        for window in files["operators"].get(rank, []):
            if mine:
                mine[-1].operators.append(window)
        found += mine
    return found


def judged(path: str | os.PathLike[str], rules: Rules = True) -> dict[int, list[Finding]]:
    """What profiler rules find in a stored run, by rank: for the same rules what they found live.

    Args:
        rules: as in ``Profile``.

    Raises:
        InputError: rules that cannot be used, or as of ``sessions``.
    """
    selected = select(rules, "profile")
    found: dict[int, list[Finding]] = {}
    for session in sessions(path):
        judge, mine = ProfileRules(selected), found.setdefault(session.rank, [])
        mine += judge.add("system", session.header)
        for name, record in session.records:
            mine += judge.add(name, {**record, "row": list(record["row"])} if "row" in record else record)
        mine += judge.add("end", {})
    return found


def _files(run: Run, name: str) -> dict[int, list[Record]]:
    """Records by rank, in the order of their files."""
    pattern = re.compile(rf"{name}\.rank(\d+)\.(\d+)\.jsonl")
    numbered = []
    for file in listed(run.fs, f"{run.path}/debug"):
        if match := pattern.fullmatch(file.rsplit("/", 1)[-1]):
            numbered.append((int(match[1]), int(match[2]), file))
    found: dict[int, list[Record]] = {}
    for rank, _, file in sorted(numbered):
        found.setdefault(rank, []).extend(_records(run.fs, file))
    return found


def _records(fs: fsspec.AbstractFileSystem, file: str) -> Iterator[Record]:
    """Lines that were committed, without those that are none; a sample's row takes 8 bytes a number."""
    for line in io.BytesIO(fs.cat_file(file)):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
            if isinstance(record, dict):
                if "row" in record:
                    record["row"] = array("d", np.array(record["row"], np.float64).tobytes())
                yield record
        except (ValueError, TypeError):
            continue


def _parts(records: list[Record]) -> Iterator[tuple[float, tuple[list[Record], Record]]]:
    """Sessions: when each began, its lines and its header."""
    rows: list[Record] | None = None
    for record in records:
        if "session" in record:
            if record.get("version", 0) > VERSION:
                raise InputError(
                    f"a profile of version {record['version']}",
                    f"version {VERSION} or an older one",
                    "a newer Loopwise recorded the run",
                    "pip install -U loopwise",
                )
            rows = []
            yield float(record["session"]), (rows, record)
        elif rows is not None:
            rows.append(record)


def _merged(rows: list[Record], phases: list[Record]) -> list[tuple[str, Record]]:
    """In the order in which they were written."""
    samples = [(number, 0, "system", row) for number, row in enumerate(rows, 1) if "row" in row]
    steps = [(int(record["sample"]), 1, "phases", record) for record in phases if "sample" in record]
    return [(name, record) for *_, name, record in sorted(samples + steps, key=lambda each: each[:2])]
