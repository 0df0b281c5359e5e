"""Application of profile rules to the records of one rank, live or from storage, with the same findings."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..engine import Engine
from ..finding import Finding
from ..thresholds import Selection
from . import series

EVERY = 60.0
"""Seconds of samples between two applications of the rules."""
SAMPLES, PERIODS = 7200, 60
"""Samples of the machine, and periods of ``EVERY`` seconds, that rules look back on: one hour."""


class ProfileRules:
    """Profile rules, with the last hour of records that they look at.

    Rules are applied after fixed numbers of samples, not by the clock, so that stored records give the same findings.

    Args:
        rules: the selected rules; those of other sources are ignored.
    """

    def __init__(self, rules: Selection) -> None:
        self._engine = Engine(rules, "profile")
        self._header: dict[str, Any] = {}
        self._columns: tuple[str, ...] = ()
        self._rows = np.empty((0, 0))
        """Ring buffer of samples: the next one overwrites the oldest."""
        self._phases: list[series.Table] = []
        """Phases of the current period."""
        self._periods: deque[series.Table] = deque(maxlen=PERIODS)
        self._samples = self._stored = self._step = 0
        self._first: float | None = None

    def add(self, name: str, record: Mapping[str, Any]) -> list[Finding]:
        """Add the next record of a session and return the new findings.

        Args:
            name: ``system`` or ``phases``; ``end`` after the last record.
            record: a line of ``debug/<name>``.
        """
        if "session" in record:
            if name == "system":
                self._header, self._columns = dict(record), tuple(record["columns"])
                self._rows, self._stored = np.empty((SAMPLES, len(self._columns))), 0
            return []
        if name == "phases":
            self._add_phases(record)
        if name == "system":
            self._add_sample(record["row"])
            self._samples += 1
        every = max(1, round(EVERY / self._header["interval"])) if self._header else 1
        due = name == "end" or (name == "system" and self._samples % every == 0)
        return self._findings() if due and self._header else []

    def _add_sample(self, row: Any) -> None:
        if isinstance(row, (list, tuple)) and self._columns and len(row) == len(self._columns):
            self._rows[self._stored % SAMPLES] = row
            self._stored += 1

    def _add_phases(self, record: Mapping[str, Any]) -> None:
        if not record["rows"]:
            return
        self._phases.append(series.part(record))
        self._step = int(record["rows"][-1][1])
        if self._first is None:
            at = 1 + record["columns"].index("time")
            self._first = next((float(row[at]) for row in record["rows"] if row[0] == "train"), None)

    def _system(self) -> series.Table:
        """Return the samples, the oldest first."""
        at = self._stored % SAMPLES
        if self._stored <= SAMPLES:
            return series.Table(self._columns, self._rows[: self._stored])
        return series.Table(self._columns, np.concatenate([self._rows[at:], self._rows[:at]]))

    def _steps(self) -> series.Table:
        """End the period and return the phases of all periods, the oldest first."""
        if self._phases:
            self._periods.append(series.joined(self._phases))
            self._phases = []
        return series.joined([series.NONE, *self._periods])

    def _findings(self) -> list[Finding]:
        start = float(self._header["session"])
        observed = series.Series(start, self._header, self._system(), self._steps(), self._first)
        findings = self._engine.apply(observed, self._step)
        while self._engine.failures:
            logging.getLogger("loopwise.debug").warning("%s", self._engine.failures.pop(0))
        return findings
