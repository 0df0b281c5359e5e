"""Report of a preflight: one result for each property that was checked."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field

from loopwise.validate import one_of

from ..rules import SEVERITIES, Finding, FindingError, Observation, at_least
from ..rules.engine import make_finding
from ..rules.finding import Points
from .known import write_baseline

WIDTH = 110
"""Characters in a line of the printed report."""


@dataclass(frozen=True, slots=True)
class Result:
    """Result of one check.

    Attributes:
        name: the checked property.
        text: the measurement, or the reason why the check was left out.
        findings: the faults.
        ran: false if the check was left out.
    """

    name: str
    text: str
    findings: tuple[Finding, ...] = ()
    ran: bool = True

    @property
    def outcome(self) -> str:
        """``passed``, ``left out``, or the worst severity of the findings."""
        if self.findings:
            return max((finding.severity for finding in self.findings), key=SEVERITIES.index)
        return "passed" if self.ran else "left out"


def faulty(
    name: str,
    rule: str,
    what: str,
    tensors: tuple[str, ...] = (),
    evidence: Mapping[str, Points] | None = None,
    advice: str = "",
) -> Result:
    """Return the result of the check ``name`` with one finding of ``rule``; the others are fields of `Observation`."""
    return Result(name, "", (make_finding(rule, Observation(what, tensors, evidence or {}, advice), 0),))


def left_out(name: str, why: str) -> Result:
    """Return the result of a check that was left out; ``why`` is a sentence for the user."""
    return Result(name, why, ran=False)


@dataclass(frozen=True, slots=True)
class PreflightReport:
    """Results of a preflight; ``print`` shows them as text.

    Attributes:
        results: one result for each check.
        seconds: duration of the preflight.
        suppressed: findings that ``suppress=`` or ``baseline=`` left out of the results.
    """

    results: tuple[Result, ...]
    seconds: float = field(compare=False)
    suppressed: tuple[Finding, ...] = ()

    @property
    def findings(self) -> list[Finding]:
        """All findings, in the order of the results."""
        return [finding for result in self.results for finding in result.findings]

    def raise_if(self, severity: str = "critical") -> None:
        """Raise an error if there is a finding of this severity or a worse one.

        Raises:
            FindingError: there is a finding of that severity or worse.
            InputError: the severity is unknown.
        """
        one_of("severity", severity, SEVERITIES, fix="raise_if('critical')")
        if bad := at_least(self.findings, severity):
            raise FindingError(
                "; ".join(f"{finding.rule}: {finding.what}" for finding in bad),
                f"no finding that is {severity} or worse",
                "a fault in the model, the batch, the loss or the optimizer",
                "; ".join(dict.fromkeys(finding.advice for finding in bad)),
            )

    def write_baseline(self, path: str | os.PathLike[str]) -> None:
        """Write all findings to a JSON file; ``preflight(..., baseline=path)`` reports only others."""
        write_baseline(path, [*self.suppressed, *self.findings])

    def __str__(self) -> str:
        number, outcomes = len(self.findings), [result.outcome for result in self.results]
        counts = f"{outcomes.count('passed')} passed, {outcomes.count('left out')} left out"
        if self.suppressed:
            counts += f", {len(self.suppressed)} suppressed"
        lines = [f"{number} finding{'s' * (number != 1)}, {counts}, in {self.seconds:.1f} s"]
        for result in self.results:
            if not result.findings:
                lines += _entry(result.outcome, result.name, result.text)
            for finding in result.findings:
                lines += _entry(finding.severity, result.name, f"{finding.what} ({finding.rule})")
                lines += _entry("", "", f"fix: {finding.advice}")
        return "\n".join(lines)


def _entry(outcome: str, name: str, text: str) -> list[str]:
    head = f"  {outcome:<9} {name:<12} "
    return textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) or [head]
