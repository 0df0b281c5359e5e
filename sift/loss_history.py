"""Losses of all samples that were seen, by index in the dataset."""

from __future__ import annotations

from typing import Any

import torch

NO_CLASS = torch.iinfo(torch.int64).min
COLUMNS = {"losses": torch.nan, "classes": NO_CLASS, "last_trained": -1}
"""Key: column.  Value: number that marks an unknown sample."""

SMOOTHING = 0.7
"""Share of the past in a sample's score by batch losses."""


class LossHistory:
    """Last loss, class and epoch of the last training step of each sample.

    Losses of training steps stay on their device and are fetched together, once an epoch, so that adding them never
    makes the training step wait.
    """

    def __init__(self) -> None:
        self.losses = torch.empty(0)
        """Last loss, float32; NaN: unknown."""
        self.classes = torch.empty(0, dtype=torch.int64)
        """Class label; ``NO_CLASS``: unknown."""
        self.last_trained = torch.empty(0, dtype=torch.int64)
        """Epoch of the last training step; -1: never."""
        self.not_finite = 0
        """Number of fetched losses that were NaN or infinite."""
        self.fetched = 0
        self._unfetched: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._smoothing = 0.0
        self._updated: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self.losses)

    def grow(self, size: int) -> None:
        """Make room for the indices below ``size``."""
        missing = size - len(self)
        if missing > 0:
            missing = max(missing, len(self) // 2)
            for name, unknown in COLUMNS.items():
                values = getattr(self, name)
                setattr(self, name, torch.cat([values, values.new_full((missing,), unknown)]))

    def add_losses(self, indices: torch.Tensor, losses: torch.Tensor) -> None:
        """Store losses, on any device, at the next ``flush``."""
        self._unfetched.append((indices, losses.detach()))

    def add_batch_score(self, indices: torch.Tensor, loss: torch.Tensor) -> None:
        """Smooth the losses of a batch's samples towards the batch's one loss, 0-dimensional, at the next ``flush``.

        The rule is the Batch Loss Score (CVPR 2026): s <- 0.7 s + 0.3 L for each sample of the batch, so that the noise
        of the other samples is filtered over the epochs.
        """
        self._smoothing = SMOOTHING
        self._unfetched.append((indices, loss.detach().expand(len(indices))))

    def set(self, indices: torch.Tensor, **columns: torch.Tensor | int) -> None:
        """Store values of the samples ``indices``: their ``losses``, ``classes`` or ``last_trained``."""
        if len(indices):
            self.grow(int(indices.max()) + 1)
            for name, values in columns.items():
                getattr(self, name)[indices] = values

    def flush(self) -> None:
        """Fetch the added losses from their device.  A loss that is not finite makes its sample unknown again."""
        if not self._unfetched:
            return
        parts, self._unfetched = self._unfetched, []
        indices = torch.cat([indices for indices, _ in parts])
        losses = torch.cat([losses.float() for _, losses in parts]).cpu()
        not_finite = ~losses.isfinite()
        self.not_finite += int(not_finite.sum())
        self.fetched += len(losses)
        losses[not_finite] = torch.nan
        if self._smoothing:
            for (part, _), values in zip(
                parts, torch.split(losses, [len(part) for part, _ in parts]), strict=True
            ):
                self._smooth(part, values)
        else:
            self.set(
                indices, losses=losses
            )  # of an index added twice the last loss stays (in order on the CPU)
        self._updated.append(indices)

    def _smooth(self, indices: torch.Tensor, losses: torch.Tensor) -> None:
        self.grow(int(indices.max()) + 1)
        past = self.losses[indices]
        smooth = self._smoothing * past + (1 - self._smoothing) * losses
        self.set(indices, losses=torch.where(past.isnan(), losses, smooth))

    def take_updates(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return indices, losses and classes of the samples whose loss changed since the last call, for the other ranks."""
        self.flush()
        indices = torch.unique(self._updated_indices())
        self._updated = []
        return indices, self.losses[indices], self.classes[indices]

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        columns = {name: getattr(self, name).clone() for name in COLUMNS}
        return columns | {"updated": self._updated_indices()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in COLUMNS:
            setattr(self, name, state[name].clone())
        self._unfetched, self._updated = [], [state["updated"].clone()]

    def _updated_indices(self) -> torch.Tensor:
        return torch.cat([torch.empty(0, dtype=torch.int64), *self._updated])
