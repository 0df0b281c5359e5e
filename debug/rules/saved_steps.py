"""Application of rules to the saved steps of a run, live or from storage, with the same findings."""

from __future__ import annotations

from typing import Any

from ..store.layout import Layout, Read
from .engine import Engine
from .finding import Finding
from .healthy_run import NAME, HealthyRun
from .history import History, Step
from .thresholds import Selection


class SavedStepRules:
    """Rules over saved steps, with the history that they look at.

    Args:
        rules: the selected rules; those of other sources are ignored.
        healthy: the run that the training is compared with; selects the rule that compares.
    """

    def __init__(self, rules: Selection, healthy: HealthyRun | None = None) -> None:
        others = {name: thresholds for name, thresholds in rules.items() if name != NAME}
        selected = others if healthy is None else others | {NAME: rules.get(NAME, {})}
        self._engine = Engine(selected, "saved step")
        self._history = History(healthy)
        self.failures = self._engine.failures
        """Messages about rules that were switched off; the caller empties the list."""

    def apply(self, record: Any, layout: Layout, read: Read) -> list[Finding]:
        """Add the next saved step to the history and return the new findings.

        Args:
            record: the step's record in the index: has ``step``, ``mode``, ``mode_step``, ``marks`` and ``time``.
            layout: layout of the step's block.
            read: function that returns bytes of the block.
        """
        step = Step(record.step, record.mode, record.mode_step, record.marks, layout, read, record.time)
        self._history.add(step)
        scalars = layout.is_of_scalars
        return self._engine.apply(self._history, step.number, step.mode, self._history.lines, scalars)
