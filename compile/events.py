"""What happens to a training step's plan while it trains: for ``explain()`` and the run folder."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from loopwise.run import Run

from .explain import Explanation


class Events:
    """Lines for a person, and records of ``compile/plans`` and ``compile/events`` in a run.

    Args:
        run: where records go; ``None``: nowhere.
    """

    def __init__(self, run: Run | None) -> None:
        self.texts: list[str] = []
        self._run = run

    def add(self, batch: int, text: str) -> None:
        """Something happened at a batch, counted from 0."""
        self.texts.append(text)
        self._write("events", {"batch": batch, "text": text})

    def plan(self, batch: int, found: Explanation) -> None:
        """A plan is on from this batch on."""
        plan = None if found.plan is None else dataclasses.asdict(found.plan)
        self._write("plans", {"batch": batch, "plan": plan, "forms": found.rows, "remarks": found.remarks})

    def _write(self, name: str, record: dict[str, Any]) -> None:
        if self._run is None:
            return
        try:
            self._run.append("compile", name, record)
            self._run.flush()
        except Exception as error:  # a full disk must not end the training
            self._run = None
            warnings.warn(
                f"loopwise.compile: its record could not be written and is left out: {error!r}",
                RuntimeWarning,
                stacklevel=3,
            )
