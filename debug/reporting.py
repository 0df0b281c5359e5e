"""What a ``Watch`` has to tell: what went wrong in it, and what was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from loopwise.run import Run

from .alerts.notices import Findings, Notices, Tell
from .capture.clock import Clock
from .capture.writer import Writer, record
from .monitors.monitor import Monitors
from .rules import Finding


class Reports:
    """Gathers it from the writer and the monitors, and tells it on the training thread.

    Args:
        run: where findings are written.
        writer: ``None``: this rank writes no steps.
        clock: says which step it is.
        counts: where steps that failed are counted.
        on_finding: called with each finding, one function or several; default: it is logged.
    """

    def __init__(
        self,
        run: Run,
        writer: Writer | None,
        clock: Clock,
        counts: Counter[str],
        on_finding: Tell | Sequence[Tell] | None,
    ) -> None:
        self._run, self._writer, self._clock, self._counts = run, writer, clock, counts
        self._findings = Findings(on_finding)
        self._notices = Notices(writer.event if writer else lambda text, step: None)
        self.attempt = self._notices.attempt

    @property
    def findings(self) -> list[Finding]:
        """All so far, in order."""
        return list(self._findings.all)

    def say(self, text: str) -> None:
        """Keep something that happened in the present step, to be warned of."""
        self._notices.say(text, self._clock.step)

    def at_once(self, finding: Finding) -> None:
        """Write down and tell what cannot wait for the next step, from any thread."""
        if self._writer is not None:
            self._writer.record([finding])
        else:
            self.attempt("findings could not be written", lambda: record(self._run, [finding]))
        self.attempt("a finding could not be told", lambda: self._findings.tell_at_once(finding))

    def collect(self, monitors: Monitors) -> None:
        """Have what monitors found written down."""
        found = monitors.findings()
        self._findings.add(found)
        if found and self._writer is not None:
            self._writer.record(found)
        elif found:
            self.attempt("findings could not be written", lambda: record(self._run, found))

    def close(self) -> None:
        """Have what is on its way delivered, for a limited time."""
        self.attempt("findings could not be delivered", self._findings.close)
        self._notices.warn()

    def tell(self) -> None:
        """Warn of what went wrong, and tell what was found."""
        if self._writer is not None:
            for text, step in self._writer.problems():
                self._counts["failed"] += step >= 0
                self._notices.say(text, step, event=False)
            self._findings.add(self._writer.findings())
        self._notices.warn()
        self._findings.tell()
