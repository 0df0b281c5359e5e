"""JSON lines: records that a reader gets also from files that were cut, damaged or written by a newer version.

``loopwise.run`` specifies the format.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from typing import Any

DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""Errors of code that reads a damaged record."""
FAR = 253402300800.0
"""Seconds since the epoch at the end of the year 9999, after which no record is written."""


def _plain(value: Any) -> Any:
    """Return ``value`` with non-finite floats as strings, and tensors and NumPy scalars as numbers."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def encode(record: dict[str, Any]) -> bytes:
    """Return the line of a record, newline included."""
    return json.dumps(_plain(record), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(data: bytes, parse: Callable[[dict[str, Any]], Any] = dict) -> tuple[list[Any], int]:
    """Return the records in a file's bytes, and the number of lost ones: cut off at the end, or damaged.

    Args:
        data: bytes of the file.
        parse: function from the JSON object of a line to what is returned; a record for which it raises one of
            ``DAMAGED`` is lost.  Default: the object itself.
    """
    records, lost = [], 0
    for line in io.BytesIO(data):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
            if not isinstance(record, dict):
                raise TypeError
            records.append(parse(record))
        except DAMAGED:
            lost += 1
    return records, lost


def count(value: Any, least: int = 0, below: int = 2**63) -> int:
    """Return a whole number of a record; raise a ``ValueError`` for any other value."""
    if type(value) is not int or not least <= value < below:
        raise ValueError(f"{value!r:.40} is no number from {least} to {below - 1}")
    return value


def finite(value: Any) -> float:
    """Return a finite number of a record; raise a ``ValueError`` for any other value."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no number")
    return float(value)


def moment(value: Any) -> float:
    """Return a time of a record in seconds since the epoch; raise a ``ValueError`` for any other value."""
    if type(value) not in (int, float) or not 0 <= value < FAR:
        raise ValueError(f"{value!r:.40} is no time")
    return float(value)


def texts(value: Any) -> tuple[str, ...]:
    """Return a list of texts of a record; raise a ``ValueError`` for any other value."""
    if not isinstance(value, list) or not all([type(text) is str for text in value]):
        raise ValueError("no list of texts")
    return tuple(value)
