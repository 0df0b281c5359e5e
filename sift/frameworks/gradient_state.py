"""Accelerate's list of the loaders in use, by which it synchronises gradients at the end of an epoch."""

from __future__ import annotations

import sys
from typing import Any

from loopwise.errors import InputError
from loopwise.ranks import world_size


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
        """Return an entry if ``Accelerator.prepare`` has returned ``loader``, else ``None``.

        Raises:
            InputError: a loader that sends each batch from one rank to the others, on several ranks.
        """
        accelerate = sys.modules.get("accelerate.state")
        state = getattr(loader, "gradient_state", None) if accelerate else None
        if accelerate and type(loader).__name__ == "DataLoaderDispatcher" and world_size() > 1:
            raise InputError(
                "a loader of Accelerate that reads on the first rank and sends each batch to the others",
                "a loader that each rank reads for itself: the ranks need different numbers of batches",
                "dispatch_batches=True, which is the default for streams",
                "DataLoaderConfiguration(dispatch_batches=False); accelerator_config={'dispatch_batches': False} in "
                "TrainingArguments",
            )
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
