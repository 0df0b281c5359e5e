"""Losses of the training step's own forward pass, read by a hook: scoring without an extra forward pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from loopwise.errors import InputError
from loopwise.preserve import inside

from .loss_history import LossHistory
from .scoring import validate_losses


class StepLosses:
    """Hook on the forward pass that follows a yielded batch; adds its per-sample losses to the history.

    The hook exists only from the yielding of a batch to its forward pass, so that models are pickled and copied without
    it.  If several batches are in use (a framework that fetches ahead), the losses go to the batch whose input the
    forward pass received.  The hook stops for good if the output does not fit the criterion, or if ``torch.compile``
    traces the model (the loader needs the compiled module then, not the one inside).

    Attributes:
        expected: number of batches that were yielded.
        observed: number of those whose losses were read.
        problem: reason why losses cannot be read; empty: they can.
        error: the criterion returned no per-sample losses, which the loader raises.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor], history: LossHistory) -> None:
        self.model, self.loss, self.history = model, loss, history
        self.expected = self.observed = 0
        self.problem = ""
        self.error: InputError | None = None
        self._active = True
        self._pending: deque[tuple[torch.Tensor, Any, torch.Tensor]] = deque(maxlen=16)
        self._handle: RemovableHandle | None = None

    def expect(self, indices: torch.Tensor, batch: Any) -> None:
        """Wait for the forward pass of the batch (input, target) of the samples ``indices``."""
        if not self._active or not isinstance(batch, (list, tuple)) or len(batch) < 2:
            return
        self._pending.append((indices, batch[0], batch[1]))
        self.expected += 1
        if self._handle is None:
            self._handle = self.model.register_forward_hook(self._hook)

    def cancel(self) -> None:
        """Remove the hook, and wait for no batch."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self._pending.clear()

    def _hook(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            self._active = False
            return
        # a trial pass of another part, perhaps at other weights, is not the step's
        if inside() or not self._pending or not module.training or not torch.is_grad_enabled():
            return
        match = self._match(args)
        if match is None:
            return
        indices, _, target = match
        try:
            with torch.no_grad():
                losses = self.loss(output.detach(), target.to(output.device, non_blocking=True))
            self.history.add_losses(indices, validate_losses(losses, len(indices)))
            self.observed += 1
        except InputError as error:
            self._active, self.error = False, error
        except Exception as error:  # the training step must go on
            self._active, self.problem = False, repr(error)

    def _match(self, args: Any) -> tuple[torch.Tensor, Any, torch.Tensor] | None:
        """Return the batch (indices, input, target) of this forward pass, and stop waiting for those before it."""
        inputs, pending = args[0] if args else None, list(self._pending)
        same = [batch for batch in pending if batch[1] is inputs]
        same = same or [batch for batch in pending if _equal(batch[1], inputs, len(pending) > 1)]
        match = same[0] if same else None
        for batch in pending:
            self._pending.popleft()
            if batch is match:
                break
        if not self._pending:
            self.cancel()
        return match


def _equal(expected: Any, actual: Any, ambiguous: bool) -> bool:
    """Return whether two inputs are equal, perhaps on different devices, by their shape and first sample.

    Values on an accelerator are compared only if ``ambiguous``: the comparison waits for the device.
    """
    tensors = isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor)
    if not tensors or len(expected) != len(actual):
        return False
    if actual.device.type != "cpu" and not ambiguous:
        return True
    first = expected[:1].to(actual.device, actual.dtype)
    return expected.shape == actual.shape and torch.equal(first, actual[:1])
