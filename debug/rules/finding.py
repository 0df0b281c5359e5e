"""Rules, their observations, and the findings that are made of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from loopwise.errors import LoopwiseError
from loopwise.storage.json_lines import count

SEVERITIES = ("info", "warning", "critical")
"""``info``: worth knowing; ``warning``: training goes worse than it could; ``critical``: training is broken."""
SOURCES = ("saved step", "profile", "ranks", "schedules", "NaN trap", "preflight")
"""Sources of the data of rules; see ``Rule.source``."""
Points = list[tuple[int, float]]
"""Pairs of step and value."""


class FindingError(LoopwiseError, RuntimeError):
    """Findings that stop a script; the preflight report raises it on request."""


@dataclass(frozen=True, slots=True)
class Observation:
    """Fault that a rule detected.

    Args:
        what: sentence that says what is wrong, with the measured numbers, without the full stop.
        tensors: names of the tensors that have the fault; empty if it is a fault of the whole run.
        evidence: series that show the fault, by name.
        advice: replaces the advice of the rule if the fix depends on what was observed.
    """

    what: str
    tensors: tuple[str, ...] = ()
    evidence: Mapping[str, Points] = field(default_factory=dict)
    advice: str = ""


Observations = Iterator[Observation]
"""Result of a rule's ``detect``."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Detection of one kind of fault, with its severity and the usual fixes.

    Args:
        detect: function that is called with the rule's source and with the thresholds as keyword arguments, and
            yields an `Observation` for each fault.  It must depend on nothing else, so that a stored run gives the
            same findings as the live run.  ``None`` if the fault is detected elsewhere (NaN trap, preflight).
        severity: one of ``SEVERITIES``.
        advice: sentence with the usual fixes, without capital letter and full stop.
        mode: mode of the steps that the rule looks at.
        source: ``saved step`` (``detect`` gets a ``History``), ``profile`` (a ``Series``), ``ranks``
            (a ``RankComparison``), ``schedules`` (a list of ``ScheduleLength``), ``NaN trap`` or ``preflight``.
        most: largest number of findings in one run.
        scalars: whether the rule also looks at steps of which only losses and metrics are saved.
    """

    detect: Callable[..., Observations] | None
    severity: str
    advice: str
    mode: str = "train"
    source: str = "saved step"
    most: int = 20
    scalars: bool = False

    @property
    def thresholds(self) -> dict[str, float]:
        """Default thresholds by name."""
        if self.detect is None:
            return {}
        parameters = list(inspect.signature(self.detect).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of a training run.

    Attributes:
        rule: name of the rule in `RULES`.
        severity: one of `SEVERITIES`.
        step: number of the step, over all modes, at which the rule first saw the fault.
        mode: mode of that step.
        what: sentence that says what is wrong.
        tensors: names of the tensors that have the fault.
        evidence: series that show the fault: name -> pairs of step and value.
        advice: the usual fixes.
        line: file and line of the user's code that the finding is about; empty if unknown.
    """

    rule: str
    severity: str
    step: int
    mode: str
    what: str
    tensors: tuple[str, ...]
    evidence: dict[str, Points]
    advice: str
    line: str = ""

    def __str__(self) -> str:
        line = f" ({self.line})" if self.line else ""
        return f"{self.severity}: {self.rule} at step {self.step}: {self.what}{line}; {self.advice}"

    def record(self) -> dict[str, Any]:
        """Return the finding as a JSON line."""
        return {key: getattr(self, key) for key in self.__slots__}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Finding:
        """Build a finding from a JSON line.

        Raises:
            LookupError, TypeError, ValueError, ArithmeticError, AttributeError: the line holds no finding.
        """
        evidence = {
            str(name): [(count(step, -(2**63)), float(value)) for step, value in points]
            for name, points in record["evidence"].items()
        }
        texts = {key: str(record[key]) for key in ("rule", "severity", "mode", "what", "advice")}
        texts["line"] = str(record.get("line", ""))
        tensors = tuple(map(str, record["tensors"]))
        if texts["severity"] not in SEVERITIES:
            raise ValueError(texts["severity"])
        return cls(step=count(record["step"], -1), tensors=tensors, evidence=evidence, **texts)


def at_least(findings: Iterable[Finding], severity: str) -> list[Finding]:
    """Return the findings of this severity or a worse one."""
    least = SEVERITIES.index(severity)
    return [finding for finding in findings if SEVERITIES.index(finding.severity) >= least]
