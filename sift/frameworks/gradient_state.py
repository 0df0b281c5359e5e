"""Accelerate's list of the loaders in use, by which it synchronises gradients at the end of an epoch."""

from __future__ import annotations

import sys
from typing import Any


class GradientState:
    """Entry of a sifting loader in Accelerate's ``GradientState``, in place of the prepared loader that it wraps.

    The prepared loader ends when its last batch is read, while kept samples still wait for their turn.

    Attributes:
        end_of_dataloader: the batch in use is the last one of its epoch.
        remainder: number of samples at the end of the last batch that only fill it up: none.
    """

    end_of_dataloader = False
    remainder = 0

    def __init__(self, loader: Any) -> None:
        self._loader, self._state = loader, loader.gradient_state

    @classmethod
    def of(cls, loader: Any) -> GradientState | None:
        """Return an entry if ``Accelerator.prepare`` has returned ``loader``, else ``None``."""
        accelerate = sys.modules.get("accelerate.state")
        state = getattr(loader, "gradient_state", None) if accelerate else None
        return cls(loader) if accelerate and isinstance(state, accelerate.GradientState) else None

    @property
    def accumulates(self) -> bool:
        """True if several batches make an update, so that the last one of an epoch has to be known."""
        steps: int = self._state.num_steps
        return steps > 1

    def show(self, last: bool) -> None:
        """Make this the active loader, and say whether its present batch is the last one."""
        self.end_of_dataloader = last
        self._state.dataloader_references = [*self._others(), self]

    def hide(self) -> None:
        """Leave the list, with the wrapped loader."""
        if self._state.initialized:  # Accelerate forgets its state when it is told to
            self._state.dataloader_references = self._others()

    def _others(self) -> list[Any]:
        return [loader for loader in self._state.dataloader_references if loader not in (self, self._loader)]
