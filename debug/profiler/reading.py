"""Reader of the profiles of all ranks, during a run, after it, and of runs that were killed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from loopwise.errors import InputError
from loopwise.run import Run, listed, read_file
from loopwise.storage.json_lines import FAR, decode

from ..rules import Finding
from ..rules.profile import series
from ..rules.profile.records import ProfileRules
from ..rules.profile.series import Table
from ..rules.thresholds import Rules, select
from .records import PARSERS, Record
from .sampler import VERSION


@dataclass
class Session:
    """Profile that one process recorded.

    Attributes:
        rank: rank of the process.
        header: the first line of ``debug/system``.
        records: the lines of ``debug/system`` and ``debug/phases`` in the order of writing, each with the word
            ``system`` or ``phases`` before it; the ``row`` of a sample is an array of float64.
        operators: lines of ``debug/operators``, one for each window of ``torch.profiler``.
    """

    rank: int
    header: Record
    records: list[tuple[str, Record]] = field(default_factory=list)
    operators: list[Record] = field(default_factory=list)

    @cached_property
    def system(self) -> Table:
        """Samples; rows of another length than the header's are left out."""
        columns = tuple(self.header["columns"])
        rows = [record["row"] for name, record in self.records if name == "system"]
        rows = [row for row in rows if len(row) == len(columns)]
        table = Table(columns, np.frombuffer(b"".join(rows)).reshape(len(rows), len(columns)))
        timed = [(table[name] >= 0) & (table[name] < FAR) for name in ("time", "missed")]
        return table.where(np.logical_and(*timed))

    @cached_property
    def phases(self) -> Table:
        """Phases of steps."""
        return series.phases(record for name, record in self.records if name == "phases")


def sessions(run: str | os.PathLike[str] | Run) -> list[Session]:
    """Return the profiles recorded in a run, by rank and then by age; none if there was no profiler.

    Args:
        run: folder or fsspec URL of a run, or a ``Run``.

    Raises:
        InputError: there is no run, or a newer Loopwise recorded it.
    """
    return read_sessions(run)[0]


def read_sessions(run: str | os.PathLike[str] | Run) -> tuple[list[Session], int]:
    """Return the profiles recorded in a run as ``sessions`` does, and the number of lost records."""
    existing = run if isinstance(run, Run) else Run.existing(run)
    read = {name: _files(existing, name) for name in PARSERS}
    files = {name: records for name, (records, _) in read.items()}
    all_sessions: list[Session] = []
    for rank, records in sorted(files["system"].items()):
        phases = {header["session"]: rows for header, rows in _parts(files["phases"].get(rank, []))}
        of_rank = [
            Session(rank, header, _merged(rows, phases.get(header["session"], [])))
            for header, rows in _parts(records)
        ]
        if of_rank:
            of_rank[-1].operators += files["operators"].get(rank, [])
        all_sessions += of_rank
    return all_sessions, sum(lost for _, lost in read.values())


def judge(run: str | os.PathLike[str] | Run, rules: Rules = True) -> dict[int, list[Finding]]:
    """Apply profile rules to a stored run; the findings are the same as during training with the same rules.

    Args:
        run: folder or fsspec URL of a run, or a ``Run``.
        rules: ``True`` for all profile rules, names of rules, or thresholds by name.

    Returns:
        Rank -> findings.

    Raises:
        InputError: there is no such rule or threshold, no run, or a newer Loopwise recorded it.
    """
    selected = select(rules, "profile")
    by_rank: dict[int, list[Finding]] = {}
    for session in sessions(run):
        applied, findings = ProfileRules(selected), by_rank.setdefault(session.rank, [])
        findings += applied.add("system", session.header)
        for name, record in session.records:
            plain = {**record, "row": list(record["row"])} if "row" in record else record
            findings += applied.add(name, plain)
        findings += applied.add("end", {})
    return by_rank


def _files(run: Run, name: str) -> tuple[dict[int, list[Record]], int]:
    """Return records by rank, in the order of their files, and the number of lost ones."""
    pattern = re.compile(rf"{name}\.rank(\d{{1,9}})\.(\d{{1,9}})\.jsonl")
    numbered = []
    for file in listed(run.fs, f"{run.path}/debug"):
        if match := pattern.fullmatch(file.rsplit("/", 1)[-1]):
            numbered.append((int(match[1]), int(match[2]), file))
    records: dict[int, list[Record]] = {}
    lost = 0
    for rank, _, file in sorted(numbered):
        try:
            of_file, lost_in_file = decode(read_file(run.fs, file), PARSERS[name])
        except FileNotFoundError:  # no file of ours
            continue
        records.setdefault(rank, []).extend(of_file)
        lost += lost_in_file
    return records, lost


def _parts(records: list[Record]) -> list[tuple[Record, list[Record]]]:
    """Return the header and the lines of each session; lines before the first header are left out."""
    parts: list[tuple[Record, list[Record]]] = []
    for record in records:
        if "session" in record:
            if record["version"] > VERSION:
                raise InputError(
                    f"a profile of version {record['version']}",
                    f"version {VERSION} or an older one",
                    "a newer Loopwise recorded the run",
                    "pip install -U loopwise",
                )
            parts.append((record, []))
        elif parts:
            parts[-1][1].append(record)
    return parts


def _merged(rows: list[Record], phases: list[Record]) -> list[tuple[str, Record]]:
    """Merge samples and phases in the order of writing."""
    samples = [(number, 0, "system", row) for number, row in enumerate(rows, 1) if "row" in row]
    steps = [(int(record["sample"]), 1, "phases", record) for record in phases if "sample" in record]
    return [(name, record) for *_, name, record in sorted(samples + steps, key=lambda entry: entry[:2])]
