"""Losses of the training step, taken from its own forward pass: no extra forward at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from loopwise.errors import InputError

from .loss_history import Memory
from .scoring import checked


class Reuse:
    """Watches for the forward pass that follows a batch and notes its per-sample losses.

    The hook is there only from the hand-out of a batch to its forward pass, so that models are
    pickled and copied without it.  Where several batches are out (a framework that fetches ahead),
    the forward pass takes the one whose input it got.  Steps aside for good when the output does
    not fit the criterion, or when the model is being traced by ``torch.compile`` (pass the compiled
    module to the loader instead of the one inside).
    """

    def __init__(self, model: nn.Module, loss: Callable[..., torch.Tensor], memory: Memory) -> None:
        self.model, self.loss, self.memory = model, loss, memory
        self.active = True
        self.fired = 0
        self.expected = 0
        self.trouble = ""
        self.wrong: InputError | None = None
        self._awaited: deque[tuple[torch.Tensor, Any, torch.Tensor]] = deque(maxlen=16)
        self._handle: RemovableHandle | None = None

    def expect(self, indices: torch.Tensor, batch: Any) -> None:
        """The batch (input, target) of these samples is about to be trained on."""
        if not self.active or not isinstance(batch, (list, tuple)) or len(batch) < 2:
            return
        self._awaited.append((indices, batch[0], batch[1]))
        self.expected += 1
        if self._handle is None:
            self._handle = self.model.register_forward_hook(self._hook)

    def forget(self) -> None:
        """Take the hook away."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
        self._awaited.clear()

    def _hook(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            self.active = False
            return
        if not self._awaited or not module.training or not torch.is_grad_enabled():
            return
        found = self._match(args)
        if found is None:
            return
        indices, target = found
        try:
            with torch.no_grad():
                losses = self.loss(output.detach(), target.to(output.device, non_blocking=True))
            self.memory.note_losses(indices, checked(losses, len(indices)))
            self.fired += 1
        except InputError as error:
            self.active, self.wrong = False, error
        except Exception as error:  # the training step must go on
            self.active, self.trouble = False, repr(error)

    def _match(self, args: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Indices and target of the batch that this forward pass is of; those before it are given up."""
        given = args[0] if args else None
        positions = [n for n, (_, inputs, _) in enumerate(self._awaited) if inputs is given]
        if not positions:
            careful = len(self._awaited) > 1
            alike = (_alike(inputs, given, careful) for _, inputs, _ in self._awaited)
            positions = [n for n, same in enumerate(alike) if same]
        found = None
        for _ in range(positions[0] + 1 if positions else len(self._awaited)):
            indices, _, target = self._awaited.popleft()
            found = (indices, target) if positions else None
        if not self._awaited:
            self.forget()
        return found


def _alike(kept: Any, given: Any, careful: bool) -> bool:
    """Whether ``given`` is ``kept``, perhaps on another device, by its shape and first sample.

    Values on an accelerator are looked at only when ``careful``: that waits for the device.
    """
    tensors = isinstance(kept, torch.Tensor) and isinstance(given, torch.Tensor)
    if not tensors or len(kept) != len(given):
        return False
    if given.device.type != "cpu" and not careful:
        return True
    return kept.shape == given.shape and torch.equal(kept[:1].to(given.device, given.dtype), given[:1])
