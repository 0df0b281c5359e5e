"""Read the curves of metrics from the logs of a trial."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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
    def regex(self) -> str | None: ...

    @property
    def value(self) -> str: ...


@dataclass(slots=True)
class Curve:
    """Values of one metric in the order of the log.

    A value takes 8 bytes, however many lines tell one.
    """

    rule: str = "last"
    """Which of the values is the metric's: ``last``, ``max`` or ``min``."""
    count: int = 0
    """Number of matches."""
    reports: array[float] = field(default_factory=lambda: array("d"))
    """The values without those that a progress bar drew again."""
    rejected: int = 0
    """Number of matches whose group is no number."""
    last: float | None = None
    largest: float = math.nan
    smallest: float = math.nan
    redrawn: float | None = None
    """Last value of the progress bar that is being drawn."""

    def add(self, value: float, redrawn: bool) -> None:
        """Add a value; with ``redrawn`` it is of a line that a terminal draws over."""
        self.count += 1
        self.last = value
        if not value <= self.largest and not math.isnan(value):
            self.largest = value
        if not value >= self.smallest and not math.isnan(value):
            self.smallest = value
        if self.redrawn is None or not _same(self.redrawn, value):
            self.reports.append(value)
        self.redrawn = value if redrawn else None

    def until(self, reports: int | None) -> Curve:
        """Return the curve of the first reports; ``None``: of all."""
        first = Curve(self.rule)
        for value in self.reports[:reports]:
            first.add(value, False)
        return first

    def value(self) -> float | None:
        """Return the value of the metric, or ``None`` if no line told it.

        NaN counts only for the last value: the largest and the smallest are those of numbers.
        """
        if self.last is None:
            return None
        return {"last": self.last, "max": self.largest, "min": self.smallest}[self.rule]


class Reader:
    """Reads curves from the streams of one trial, which may grow while it reads.

    Each stream (stdout, stderr) has its own lines.  Metrics come from regular expressions, and from lines that are a JSON
    object ``{"loopwise": {"name": number, ...}}``, which ``report`` prints.

    Args:
        definitions: names, regular expressions and rules of the metrics.
    """

    def __init__(self, definitions: Iterable[Definition]) -> None:
        definitions = list(definitions)
        expressions = {d.name: d.regex for d in definitions if d.regex is not None}
        self.names = list(expressions)
        self.curves = {definition.name: Curve(definition.value) for definition in definitions}
        self.patterns = Patterns([Pattern(text) for text in expressions.values()])
        self._streams: dict[str, Lines] = {}

    def feed(self, data: bytes, stream: str = "stdout") -> None:
        """Read the next bytes of a stream."""
        self._read(self._streams.setdefault(stream, Lines()).feed(data))

    def end(self) -> None:
        """Read the last lines, which may have no end."""
        for lines in self._streams.values():
            self._read(lines.rest())

    def _read(self, lines: Iterable[Line]) -> None:
        found = self.patterns.found
        for text, redrawn in lines:
            hits = found(text)
            if hits:
                self._add(hits, text, redrawn)
            if text.startswith(REPORT):
                self._add_report(text)

    def _add(self, hits: Sequence[int], text: bytes, redrawn: bool) -> None:
        for hit in hits:
            curve = self.curves[self.names[hit]]
            for captured in self.patterns.patterns[hit].values(text):
                value = number(captured) if captured is not None else None
                if value is None:
                    curve.rejected += 1
                else:
                    curve.add(value, redrawn)

    def _add_report(self, text: bytes) -> None:
        try:
            values = json.loads(text)["loopwise"]
            pairs = [(str(name), float(value)) for name, value in values.items()]
        except (ValueError, TypeError, AttributeError, KeyError):
            return
        for name, value in pairs:
            self.curves.setdefault(name, Curve()).add(value, False)


def _same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))
