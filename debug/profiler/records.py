"""Records of a profile as they are read; a record of another form than ``sampler.py`` specifies is lost."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from loopwise.storage.json_lines import FAR, count, finite, moment, texts

from ..rules.profile.series import FIXED
from .gpu import COLUMNS as DEVICE
from .host import HOST
from .sampler import VERSION
from .windows import COLUMNS

Record = dict[str, Any]
MOST = 5000
"""Largest number of columns of a sample; rules keep an hour of samples in memory."""
NEEDED = {"time", "late", "missed", "process_cpu", "process_memory"}
"""Columns of each sample."""


def _system(record: Record) -> Record:
    if "session" not in record:
        return {**record, "row": array("d", map(float, record["row"]))} if "row" in record else record
    header = _header(record)
    if header["version"] > VERSION:
        return header  # the reader says so
    columns = texts(record["columns"])
    if not NEEDED.issubset(columns) or len(columns) > MOST or len(set(columns)) < len(columns):
        raise ValueError("other columns than samples have")
    if finite(record["interval"]) <= 0:
        raise ValueError("an interval that is not positive")
    texts([record["host"], *record["devices"], *record.get("used", [])])
    together = [{*HOST}, *({name + suffix for suffix in DEVICE} for name in record["devices"])]
    if any(0 < len(names.intersection(columns)) < len(names) for names in together):
        raise ValueError("a part of the columns of the machine, or of a device")
    cores = {name: count(record[name], below=2**31) for name in ("cores", "usable") if name in record}
    totals = {str(name): finite(total) for name, total in record["totals"].items()}
    return header | cores | {"totals": totals}


def _header(record: Record) -> Record:
    return {**record, "session": moment(record["session"]), "version": count(record.get("version", 0))}


def _phases(record: Record) -> Record:
    if "session" in record:
        return _header(record)
    count(record["sample"])
    columns = texts(record["columns"])
    if not set(FIXED[:5]).issubset(columns) or len(columns) > MOST or len(set(columns)) < len(columns):
        raise ValueError("other columns than phases have")
    step, number, time = (columns.index(name) for name in ("step", "count", "time"))
    for mode, *numbers in record["rows"]:
        texts([mode])
        valid = all([abs(finite(number)) < FAR for number in numbers]) and len(numbers) == len(columns)
        if not valid or numbers[step] < 0 or numbers[number] < 1 or numbers[time] < 0:
            raise ValueError("numbers that no step has")
    return record


def _operators(record: Record) -> Record:
    count(record["step"], below=2**53)
    count(record["steps"], 1, 2**53)
    finite(record["seconds"])
    texts([record["trace"]])
    for name, *numbers in record["rows"]:
        texts([name])
        if len(numbers) != len(COLUMNS) or not all([abs(finite(number)) < 2**63 for number in numbers]):
            raise ValueError("other numbers than operators have")
    return record


PARSERS: dict[str, Callable[[Record], Record]] = {
    "system": _system,
    "phases": _phases,
    "operators": _operators,
}
"""Name of a file -> function that returns a record of it, or raises an error if the record is of another form."""
