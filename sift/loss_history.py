"""What is remembered of each sample, by its index in the dataset."""

from __future__ import annotations

from typing import Any

import torch


class Memory:
    """Last loss, class and epoch of the last training step of each sample.

    Losses of training steps wait on their device and are fetched together, once an epoch, so that
    noting them never makes the training step wait.
    """

    def __init__(self) -> None:
        self.losses = torch.empty(0)
        """float32, NaN: not known."""
        self.classes = torch.empty(0, dtype=torch.int64)
        """-1: not known."""
        self.trained = torch.empty(0, dtype=torch.int64)
        """Epoch, -1: never."""
        self.wild = 0
        """Losses noted that were not finite."""
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._fresh: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self.losses)

    def grow(self, size: int) -> None:
        """Make room for the indices below ``size``."""
        more = size - len(self)
        if more > 0:
            more = max(more, len(self) // 2)
            unknown = torch.full((more,), -1, dtype=torch.int64)
            self.losses = torch.cat([self.losses, torch.full((more,), torch.nan)])
            self.classes = torch.cat([self.classes, unknown])
            self.trained = torch.cat([self.trained, unknown])

    def note_losses(self, indices: torch.Tensor, losses: torch.Tensor) -> None:
        """Remember losses, of any device, at the next ``flush``."""
        self._waiting.append((indices, losses.detach()))

    def note_trained(self, indices: torch.Tensor, epoch: int) -> None:
        if len(indices):
            self.grow(int(indices.max()) + 1)
            self.trained[indices] = epoch

    def note_classes(self, indices: torch.Tensor, classes: torch.Tensor) -> None:
        if len(indices):
            self.grow(int(indices.max()) + 1)
            self.classes[indices] = classes

    def flush(self) -> None:
        """Fetch the losses that wait.  Those not finite make the sample unknown again."""
        if not self._waiting:
            return
        indices = torch.cat([indices for indices, _ in self._waiting])
        losses = torch.cat([losses.float() for _, losses in self._waiting]).cpu()
        self._waiting = []
        self.grow(int(indices.max()) + 1)
        wild = ~losses.isfinite()
        self.wild += int(wild.sum())
        losses[wild] = torch.nan
        self.losses[indices] = losses  # of an index noted twice the last one counts (in order on the CPU)
        self._fresh.append(indices)

    def news(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices and losses that changed since the last call, for the other ranks."""
        self.flush()
        indices = torch.unique(torch.cat(self._fresh)) if self._fresh else torch.empty(0, dtype=torch.int64)
        self._fresh = []
        return indices, self.losses[indices]

    def hear(self, indices: torch.Tensor, losses: torch.Tensor, epoch: int) -> None:
        """Take over what another rank found out in ``epoch``."""
        if len(indices):
            self.grow(int(indices.max()) + 1)
            self.losses[indices] = losses
            self.trained[indices] = epoch

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        fresh = torch.cat(self._fresh) if self._fresh else torch.empty(0, dtype=torch.int64)
        tensors = {"losses": self.losses, "classes": self.classes, "trained": self.trained, "fresh": fresh}
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self.classes, self.trained = (
            state[name].clone() for name in ("losses", "classes", "trained")
        )
        self._waiting, self._fresh = [], [state["fresh"].clone()]
