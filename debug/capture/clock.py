"""Counters of training steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


class Clock:
    """Number of the current step, over all modes and by mode.

    Attributes:
        step: steps before the current one, of all modes.
        mode: mode of the current step.
    """

    def __init__(self) -> None:
        self.step, self.mode = 0, "train"
        self._steps = Counter[str]()

    @property
    def mode_step(self) -> int:
        """Steps of the current mode before the current one."""
        return self._steps[self.mode]

    def tick(self) -> None:
        """Count the current step and go on to the next one."""
        self.step += 1
        self._steps[self.mode] += 1

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "steps": dict(self._steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step, self._steps = state["step"], Counter(state["steps"])
