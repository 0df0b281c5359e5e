"""Training steps by replays of one CUDA graph that holds forward, backward, clipping and update.

A recording fixes addresses and numbers.  So batches are copied to the addresses of the recorded one, learning
rates are read from the GPU, gradients of accumulated batches stay where they are, and everything else that a
recording cannot follow is compared before each replay: if it changed, the step is recorded again.  PyTorch's own
graph trees record forward and backward alone and overwrite gradients that are still being accumulated
(https://github.com/pytorch/pytorch/issues/96693).
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

from ..graph.backend import first_line
from ..search.variants import shape_of
from ..spec import Compute, StepSpec, Tell
from .recorder import Recorder
from .recording import Attempt, Recording, refusal, structure_of
from .state import signature

WARM_UP = 3
"""Number of ordinary updates before a recording: libraries choose algorithms, the optimizer makes its state."""
MOST = 3
"""Largest number of recordings; a step that changes more often stays ordinary."""


class CudaGraphStep:
    """Function that replays a training step if this is possible, correct and faster, and reports once if it is not.

    Args:
        spec: the training step.
        compute: the computation of its loss.
        usual: shapes of the batches that are replayed, as ``shape_of`` returns them.
        recorder: recorder of the step's device.
        tell: takes a line for ``explain()``.
    """

    def __init__(self, spec: StepSpec, compute: Compute, usual: Any, recorder: Recorder, tell: Tell) -> None:
        self.off = ""
        """Reason why the step stays ordinary; empty as long as it may be replayed."""
        self._spec, self._compute, self._usual = spec, compute, usual
        self._recorder, self._tell = recorder, tell
        self._accumulates = spec.accumulate > 1
        self._recording: Recording | None = None
        self._recent: deque[Any] = deque(maxlen=WARM_UP)
        self._updates = self._recordings = 0

    @property
    def keeps_gradients(self) -> bool:
        """``True`` if a recording adds to the gradients: an update then fills them with zeros instead of dropping them."""
        return self._recording is not None and self._accumulates

    def __call__(self, batch: Any, first: bool, last: bool) -> Tensor | None:
        """Train on a batch by a replay and return its losses; return ``None`` if the caller must make an ordinary step.

        Args:
            batch: the batch.
            first: whether it is the first one since an update.
            last: whether it is the last one before an update.
        """
        if self.off or shape_of(batch) != self._usual:
            return None
        recording = self._recording
        if recording is not None:
            moved = recording.gradients_moved()
            if moved and not self._accumulates:
                return None
            if moved or recording.signature != signature(self._spec):
                self._forget(recording, first)
                recording = None
        if recording is None:
            if not first or self._updates < WARM_UP:
                self._recent.append(batch)
                self._updates += last
                return None
            recording = self._record(batch)
        if recording is None or structure_of(batch) != recording.structure:
            return None
        assert self._spec.optimizer is not None
        if first and self._accumulates:  # a replay adds to gradients that somebody else may have left
            self._spec.wrapper.zero_grad(set_to_none=False)
        return recording.replay(batch, last, self._spec.optimizer)

    def _forget(self, recording: Recording, first: bool) -> None:
        """Drop a recording that is out of date."""
        self._recording, self._updates = None, 0
        if first:
            recording.drop_zero_gradients()
        self._tell("CUDA graph: recorded again, the model, its mode or the optimizer changed")

    def _record(self, batch: Any) -> Recording | None:
        """Record the step and compare it with ordinary steps; switch replays off if that fails."""
        self._recordings += 1
        try:
            changing = f"the step changed after each of {MOST} recordings" * (self._recordings > MOST)
            self.off = changing or refusal(self._spec, batch)
            if not self.off:
                attempt = Attempt(self._spec, self._compute, self._recorder, self._recent)
                self._recording, self.off = attempt.run(batch)
                if not self.off and attempt.timing:
                    self._tell(f"CUDA graph: on, {attempt.timing}")
        except Exception as error:  # training goes on as if the step had not been recorded
            self.off = first_line(error)
        if self.off:
            self._recording = None
            self._tell(f"CUDA graph: left off, {self.off}")
        self._recent.clear()
        return self._recording
