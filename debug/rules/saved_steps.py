"""Application of rules to the saved steps of a run, live or from storage, with the same findings."""

from __future__ import annotations

from typing import Any

from ..store.layout import Layout, Read
from .engine import Engine
from .finding import Finding
from .history import History, Step
from .thresholds import Selection


class SavedStepRules:
    """Rules over saved steps, with the history that they look at.

    Args:
        rules: the selected rules; those of other sources are ignored.
    """

    def __init__(self, rules: Selection) -> None:
        self._engine = Engine(rules, "saved step")
        self._history = History()
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
