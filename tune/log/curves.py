"""Read the curves of metrics from the logs of a trial."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from .numbers import number
from .patterns import Pattern, Patterns
from .splitting import Line, Lines

REPORT = b'{"loopwise"'
"""Beginning of a line by which a program reports metrics without a regular expression."""


class Definition(Protocol):
    """Name, regular expression and rule of a metric."""

    @property
    def name(self) -> str: ...

    @property
    def regex(self) -> str: ...

    @property
    def value(self) -> str: ...


class Point(NamedTuple):
    """One value that a line told."""

    value: float
    line: int
    """Number of the line in its stream, from 1."""


@dataclass(slots=True)
class Curve:
    """All values of one metric in the order of the log."""

    rule: str = "last"
    """Which of the values is the metric's: ``last``, ``max`` or ``min``."""
    points: list[Point] = field(default_factory=list)
    """Every match."""
    reports: list[float] = field(default_factory=list)
    """The values without those that a progress bar drew again."""
    rejected: int = 0
    """Number of matches whose group is no number."""
    redrawn: float | None = None
    """Last value of the progress bar that is being drawn."""

    def add(self, value: float, line: int, redrawn: bool) -> None:
        """Add a value; with ``redrawn`` it is of a line that a terminal draws over."""
        self.points.append(Point(value, line))
        repeated = self.redrawn is not None and _same(self.redrawn, value)
        if not repeated:
            self.reports.append(value)
        self.redrawn = value if redrawn else None

    def value(self) -> float | None:
        """Return the value of the metric, or ``None`` if no line told it.

        NaN counts only for the last value: the largest and the smallest are those of numbers.
        """
        if not self.points:
            return None
        if self.rule == "last":
            return self.points[-1].value
        known = [point.value for point in self.points if not math.isnan(point.value)]
        return {"max": max, "min": min}[self.rule](known) if known else math.nan


class Reader:
    """Reads curves from the streams of one trial, which may grow while it reads.

    Each stream (stdout, stderr) has its own lines.  Metrics come from regular expressions, and from lines that are a JSON
    object ``{"loopwise": {"name": number, ...}}``, which ``report`` prints.

    Args:
        definitions: names, regular expressions and rules of the metrics.
    """

    def __init__(self, definitions: Iterable[Definition]) -> None:
        definitions = list(definitions)
        self.names = [definition.name for definition in definitions]
        self.curves = {definition.name: Curve(definition.value) for definition in definitions}
        self.patterns = Patterns([Pattern(definition.regex) for definition in definitions])
        self._streams: dict[str, Lines] = {}
        self._counts: dict[str, int] = {}

    def feed(self, data: bytes, stream: str = "stdout") -> None:
        """Read the next bytes of a stream."""
        self._read(self._streams.setdefault(stream, Lines()).feed(data), stream)

    def end(self) -> None:
        """Read the last lines, which may have no end."""
        for stream, lines in self._streams.items():
            self._read(lines.rest(), stream)

    def _read(self, lines: Iterable[Line], stream: str) -> None:
        count, found = self._counts.get(stream, 0), self.patterns.found
        for count, (text, redrawn) in enumerate(lines, count + 1):  # noqa: B020
            hits = found(text)
            if hits:
                self._add(hits, text, count, redrawn)
            if text.startswith(REPORT):
                self._add_report(text, count)
        self._counts[stream] = count

    def _add(self, hits: Sequence[int], text: bytes, count: int, redrawn: bool) -> None:
        for hit in hits:
            curve = self.curves[self.names[hit]]
            for captured, _ in self.patterns.patterns[hit].values(text):
                value = number(captured) if captured is not None else None
                if value is None:
                    curve.rejected += 1
                else:
                    curve.add(value, count, redrawn)

    def _add_report(self, text: bytes, count: int) -> None:
        try:
            values = json.loads(text)["loopwise"]
            pairs = [(str(name), float(value)) for name, value in values.items()]
        except (ValueError, TypeError, AttributeError, KeyError):
            return
        for name, value in pairs:
            self.curves.setdefault(name, Curve()).add(value, count, False)


def _same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))
