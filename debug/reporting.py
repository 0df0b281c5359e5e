"""Messages and findings of the writer and the monitors, collected and reported on the training thread."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from loopwise.run import Run

from .alerts.notices import Findings, Notices, Tell
from .capture.clock import Clock
from .capture.writer import Writer, record
from .loggers.delivery import Deliveries
from .monitors.monitor import Monitors
from .rules import Finding


class Reports:
    """Messages and findings of one ``Watch``.

    Args:
        run: the run that findings are written into.
        writer: source of findings and errors; ``None``: this rank writes no steps.
        clock: the step's number.
        counts: counter of failed steps.
        on_finding: function or functions that are called with each finding; default: findings are logged.
        loggers: destinations of findings beside these functions.
    """

    def __init__(
        self,
        run: Run,
        writer: Writer | None,
        clock: Clock,
        counts: Counter[str],
        on_finding: Tell | Sequence[Tell] | None,
        loggers: Deliveries,
    ) -> None:
        self._run, self._writer, self._clock, self._counts = run, writer, clock, counts
        self._loggers = loggers
        self._findings = Findings(on_finding, (loggers.add_finding,))
        self._notices = Notices(writer.event if writer else lambda text, step: None)
        self.attempt = self._notices.attempt

    @property
    def findings(self) -> list[Finding]:
        """All findings so far, in order."""
        return list(self._findings.all)

    def say(self, text: str) -> None:
        """Keep a message about the present step until ``tell`` warns of it."""
        self._notices.say(text, self._clock.step)

    def readable(self, scalars: Mapping[str, Any]) -> dict[str, float | torch.Tensor]:
        """Return the losses and metrics that are numbers, and say once that others are left out."""
        numbers = {
            name: number for name, value in scalars.items() if (number := as_number(value)) is not None
        }
        for name in scalars.keys() - numbers.keys():
            kind = type(scalars[name]).__name__
            self.say(
                f"losses and metrics have to be numbers or tensors: {name} of type {kind} is left out of a step"
            )
        return numbers

    def at_once(self, finding: Finding) -> None:
        """Write a finding and call the user's functions with it at once; any thread may call this function."""
        self._record([finding])
        self.attempt("a finding could not be reported", lambda: self._findings.tell_at_once(finding))

    def collect(self, monitors: Monitors) -> None:
        """Take over the findings of the monitors and write them."""
        if findings := monitors.findings():  # at every step: a call less
            self._take(findings)

    def collect_at_end(self, judge: Callable[[], list[Finding]]) -> None:
        """Take over the findings about a training that came to its end and write them."""

        def collect() -> None:
            if findings := judge():
                self._take(findings)

        self.attempt("the training could not be judged at its end", collect)

    def _take(self, findings: list[Finding]) -> None:
        self._findings.add(findings)
        self._record(findings)

    def _record(self, findings: list[Finding]) -> None:
        if self._writer is not None:
            self._writer.record(findings)
        else:
            self.attempt("findings could not be written", lambda: record(self._run, findings))

    def close(self) -> None:
        """Wait a limited time until the last findings are delivered."""
        self.attempt("findings could not be delivered", self._findings.close)
        self.attempt("loggers could not be closed", self._loggers.close)
        self._tell_of_loggers()
        self._notices.warn()

    def tell(self) -> None:
        """Warn of the messages and tell the findings since the last call."""
        if self._writer is not None and self._writer.has_news():
            for text, step in self._writer.problems():
                self._counts["failed"] += step >= 0
                self._notices.say(text, step, event=False)
            self._findings.add(self._writer.findings())
        self._tell_of_loggers()
        self._notices.warn()
        self._findings.tell()

    def _tell_of_loggers(self) -> None:
        for text in self._loggers.problems():
            self._notices.say(text, -1)
        if self._loggers.dropped:
            self._counts["unlogged"] = self._loggers.dropped


def as_number(value: Any) -> float | torch.Tensor | None:
    """Return a real tensor, or any other number as a float; ``None`` if the value is neither."""
    if isinstance(value, torch.Tensor):
        return None if value.is_complex() or not value.numel() else value
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
