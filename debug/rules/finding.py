"""What a rule finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from .history import History

SEVERITIES = ("info", "warning", "critical")
"""Worth knowing; training goes worse than it could; training is broken."""
Points = list[tuple[int, float]]
"""Steps and values."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a rule's function yields.

    Args:
        what: what is wrong, as a sentence without its end, with the numbers in it.
        tensors: names of what it is wrong with; none for the run as a whole.
        evidence: the series that shows it, by name.
    """

    what: str
    tensors: tuple[str, ...] = ()
    evidence: Mapping[str, Points] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    """A check of saved steps.

    Args:
        check: called with the history after each saved step of ``mode``; its keyword arguments are
            the thresholds.  Pure: what it yields depends on the history alone.
        severity: one of ``SEVERITIES``.
        advice: a sentence with the usual fixes.
        mode: of the steps that it looks at.
    """

    check: Callable[..., Iterator[Seen]]
    severity: str
    advice: str
    mode: str = "train"

    def __call__(self, history: History, **thresholds: float) -> Iterator[Seen]:
        return self.check(history, **thresholds)


def named(*modules: ModuleType) -> dict[str, Rule]:
    """The rules of modules by their names."""
    return {module.__name__.rpartition(".")[2]: module.RULE for module in modules}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with a training run.

    Attributes:
        rule: its name in `RULES`.
        severity: one of `SEVERITIES`.
        step: the saved step, over all modes, at which it was seen first.
        mode: of the step.
        what: what is wrong.
        tensors: what it is wrong with.
        evidence: the series that shows it: name -> pairs of step and value.
        advice: what is usually done about it.
        line: file and line of the user's code that it is about, where that is known.
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
        where = f" ({self.line})" if self.line else ""
        return f"{self.severity}: {self.rule} at step {self.step}: {self.what}{where}; {self.advice}"

    def record(self) -> dict[str, Any]:
        """As JSON lines have it."""
        return {key: getattr(self, key) for key in self.__slots__}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Finding:
        """From a JSON line.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        evidence = {
            str(name): [(int(step), float(value)) for step, value in points]
            for name, points in record["evidence"].items()
        }
        texts = {key: str(record[key]) for key in ("rule", "severity", "mode", "what", "advice")}
        tensors = tuple(map(str, record["tensors"]))
        line = str(record.get("line", ""))
        return cls(step=int(record["step"]), tensors=tensors, evidence=evidence, line=line, **texts)


def at_least(findings: Iterable[Finding], severity: str) -> list[Finding]:
    """Those of a severity or a worse one."""
    least = SEVERITIES.index(severity)
    return [finding for finding in findings if SEVERITIES.index(finding.severity) >= least]
