"""Which step it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


class Clock:
    """Counts the steps of a ``Watch``, over all modes and by mode."""

    def __init__(self) -> None:
        self.step, self.mode = 0, "train"
        self._steps = Counter[str]()

    @property
    def mode_step(self) -> int:
        """The step, of its mode."""
        return self._steps[self.mode]

    def tick(self) -> None:
        """A step ended."""
        self.step += 1
        self._steps[self.mode] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "steps": dict(self._steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self._steps = state["step"], Counter(state["steps"])
