"""What ``check`` came to: a line for each thing that was looked at."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loopwise.errors import InputError

from ..rules import SEVERITIES, Finding, at_least
from ..rules.finding import Points

WIDTH = 110
"""Characters a line."""


def found(
    rule: str,
    severity: str,
    what: str,
    advice: str,
    tensors: Sequence[str] = (),
    evidence: Mapping[str, Points] | None = None,
) -> Finding:
    """A finding before training; its arguments are those of `Finding`."""
    return Finding(rule, severity, 0, "train", what, tuple(tensors), dict(evidence or {}), advice)


@dataclass(frozen=True, slots=True)
class Result:
    """What one thing that was looked at came to.

    Attributes:
        name: of what was looked at.
        text: what was seen, or why it was left out.
        findings: what is wrong with it.
        ran: false where it was left out.
    """

    name: str
    text: str
    findings: tuple[Finding, ...] = ()
    ran: bool = True

    @property
    def outcome(self) -> str:
        """``passed``, ``left out``, or the worst severity of its findings."""
        if self.findings:
            return max((finding.severity for finding in self.findings), key=SEVERITIES.index)
        return "passed" if self.ran else "left out"


def left_out(name: str, why: str) -> Result:
    return Result(name, why, ran=False)


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found before training.  ``print`` it for a report.

    Attributes:
        results: one for each thing that was looked at.
        seconds: that it took.
    """

    results: tuple[Result, ...]
    seconds: float = field(compare=False)

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, in the order of the report."""
        return [finding for result in self.results for finding in result.findings]

    def raise_if(self, severity: str = "critical") -> None:
        """Stop here where something so severe, or worse, was found.

        Raises:
            InputError: it was; or there is no such severity.
        """
        if severity not in SEVERITIES:
            raise InputError(
                f"severity={severity!r}",
                f"one of {', '.join(SEVERITIES)}",
                "a typing error",
                "raise_if('critical')",
            )
        if bad := at_least(self.findings, severity):
            raise InputError(
                "; ".join(f"{finding.rule}: {finding.what}" for finding in bad),
                f"a training without findings that are {severity} or worse",
                "model, batch, loss or optimizer are not as they should be",
                "; ".join(dict.fromkeys(finding.advice for finding in bad)),
            )

    def __str__(self) -> str:
        counts = [
            f"{sum(result.outcome == outcome for result in self.results)} {outcome}"
            for outcome in ("passed", "left out")
        ]
        found = f"{len(self.findings)} finding{'s' * (len(self.findings) != 1)}"
        lines = [f"{found}, {', '.join(counts)}, in {self.seconds:.1f} s"]
        for result in self.results:
            if not result.findings:
                lines += _told(result.outcome, result.name, result.text)
            for finding in result.findings:
                lines += _told(finding.severity, result.name, f"{finding.what} ({finding.rule})")
                lines += _told("", "", f"fix: {finding.advice}")
        return "\n".join(lines)


def _told(outcome: str, name: str, text: str) -> list[str]:
    head = f"  {outcome:<9} {name:<12} "
    body = textwrap.wrap(text, WIDTH - len(head)) or [""]
    return [(head if number == 0 else " " * len(head)) + line for number, line in enumerate(body)]
