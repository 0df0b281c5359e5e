"""Applies profiler rules to a rank's record at fixed points of it: what they find live they find again offline."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..rules.finding import Finding
from ..rules.thresholds import Rules, chosen
from . import series
from .rules import PROFILE_RULES

EVERY = 60.0
"""Seconds of samples from one look to the next."""
SAMPLES, LOOKS = 7200, 60
"""Samples, and looks with their records of phases, that are looked back upon: an hour of them."""


class ProfileJudge:
    """Takes the records of one session in the order in which they were written.

    Each rule says the same thing once.  A rule that fails is switched off; the others go on.

    Args:
        rules: names of rules, or thresholds by name and parameter; ``None``: all.

    Raises:
        InputError: an unknown rule or threshold, or one that is no number.
    """

    def __init__(self, rules: Rules | None = None) -> None:
        self._rules = chosen(rules, PROFILE_RULES)
        self._header: dict[str, Any] = {}
        self._columns: tuple[str, ...] = ()
        self._rows = np.empty((0, 0))
        """A ring of samples: the next one goes where the oldest is."""
        self._phases: list[series.Table] = []
        """Records since the last look."""
        self._before: deque[series.Table] = deque(maxlen=LOOKS)
        self._samples = self._kept = self._step = 0
        self._first: float | None = None
        self._told: set[tuple[str, tuple[str, ...]]] = set()

    def look(self, name: str, record: Mapping[str, Any]) -> list[Finding]:
        """What is found now that was not before.

        Args:
            name: ``system``, ``phases``, or ``end``, after the last record.
            record: a line of ``debug/<name>``.
        """
        if "session" in record:
            if name == "system":
                self._header, self._columns = dict(record), tuple(record["columns"])
                self._rows, self._kept = np.empty((SAMPLES, len(self._columns))), 0
            return []
        if name == "phases":
            self._add_phases(record)
        if name == "system":
            self._add_sample(record["row"])
            self._samples += 1
        every = max(1, round(EVERY / self._header["interval"])) if self._header else 1
        due = name == "end" or (name == "system" and self._samples % every == 0)
        return self._judge() if due and self._header else []

    def _add_sample(self, row: Any) -> None:
        if isinstance(row, (list, tuple)) and self._columns and len(row) == len(self._columns):
            self._rows[self._kept % SAMPLES] = row
            self._kept += 1

    def _system(self) -> series.Table:
        """Samples from the oldest to the newest."""
        at = self._kept % SAMPLES
        if self._kept <= SAMPLES:
            return series.Table(self._columns, self._rows[: self._kept])
        return series.Table(self._columns, np.concatenate([self._rows[at:], self._rows[:at]]))

    def _steps(self) -> series.Table:
        """Rows of phases, likewise; those of a look stay joined."""
        if self._phases:
            self._before.append(series.joined(self._phases))
            self._phases = []
        return series.joined([series.NONE, *self._before])

    def _add_phases(self, record: Mapping[str, Any]) -> None:
        if not record["rows"]:
            return
        self._phases.append(series.part(record))
        self._step = int(record["rows"][-1][1])
        if self._first is None:
            at = 1 + record["columns"].index("time")
            self._first = next((float(row[at]) for row in record["rows"] if row[0] == "train"), None)

    def _judge(self) -> list[Finding]:
        seen = series.Series(
            float(self._header["session"]),
            self._header,
            self._system(),
            self._steps(),
            self._first,
        )
        found: list[Finding] = []
        for name, (rule, thresholds) in list(self._rules.items()):
            try:
                for each in rule.check(seen, **thresholds):
                    if (name, each.tensors) not in self._told:
                        self._told.add((name, each.tensors))
                        found.append(
                            Finding(
                                name,
                                rule.severity,
                                self._step,
                                "train",
                                each.what,
                                each.tensors,
                                dict(each.evidence),
                                rule.advice,
                            )
                        )
            except Exception as error:
                del self._rules[name]
                logging.getLogger("loopwise.debug").warning("the rule %s is switched off: %r", name, error)
        return found
