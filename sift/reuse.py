"""Losses of the training step, taken from its own forward pass: no extra forward at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from loopwise.errors import InputError

from .memory import Memory
from .scoring import checked


class Reuse:
    """Watches the one forward pass that follows a batch and notes its per-sample losses.

    The hook is there only from the hand-out of a batch to the forward pass, so that models are
    pickled and copied without it.  It steps aside for good when the output does not fit the
    criterion, or when the model is being traced by ``torch.compile`` (pass the compiled module to
    the loader instead of the one inside).
    """

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor], memory: Memory) -> None:
        self.model, self.loss, self.memory = model, loss, memory
        self.active = True
        self.fired = 0
        self.expected = 0
        self.trouble = ""
        self.wrong: InputError | None = None
        self._awaited: tuple[torch.Tensor, torch.Tensor] | None = None
        self._handle: RemovableHandle | None = None

    def expect(self, indices: torch.Tensor, batch: Any) -> None:
        """The batch (input, target) of these samples is about to be trained on."""
        self.forget()
        if not self.active or not isinstance(batch, (list, tuple)) or len(batch) < 2:
            return
        self._awaited = indices, batch[1]
        self.expected += 1
        self._handle = self.model.register_forward_hook(self._hook)

    def forget(self) -> None:
        """Take the hook away."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._awaited = None

    def _hook(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            self.active = False
            return
        if self._awaited is None or not module.training or not torch.is_grad_enabled():
            return
        indices, target = self._awaited
        self.forget()
        try:
            with torch.no_grad():
                losses = self.loss(output.detach(), target.to(output.device, non_blocking=True))
            self.memory.note_losses(indices, checked(losses, len(indices)))
            self.fired += 1
        except InputError as error:
            self.active, self.wrong = False, error
        except Exception as error:  # the training step must go on
            self.active, self.trouble = False, repr(error)
