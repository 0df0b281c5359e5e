"""The last losses that a policy compares new ones with."""

from __future__ import annotations

from typing import Any

import torch

from .policy import Pool


class PastLosses:
    """Last losses of the samples that were scored as they came: at most ``limit``, and at most one epoch's.

    Losses fall during training.  Were a sample's losses of several epochs in the comparison, which happens if the data
    are fewer than ``limit``, every new loss would be among the low ones, and ever fewer samples would be kept.

    Args:
        limit: greatest number of losses; a larger pool counts in full.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.losses = torch.empty(0)
        """Last losses, float32, the newest ones last."""
        self._others = torch.empty(0)
        self._epoch = self._in_epoch = self._in_last_epoch = 0

    def compared_with(self, pool: Pool) -> torch.Tensor:
        """Return the losses that the pool's are compared with, float32; they contain the pool's own.

        A planned pool has the losses of all samples, so it is compared with itself alone.
        """
        if pool.planned:
            return pool.losses
        if pool.epoch != self._epoch:
            self._epoch, self._in_last_epoch, self._in_epoch = pool.epoch, self._in_epoch, 0
        self._in_epoch += len(pool)
        limit = self.limit
        if self._in_last_epoch:
            limit = min(limit, max(self._in_last_epoch, self._in_epoch))
        self.losses = torch.cat([self.losses, pool.losses])[-max(limit, len(pool), 1) :]
        return torch.cat([self.losses, self._others])

    def receive(self, losses: torch.Tensor) -> None:
        """Take the past losses of all other ranks."""
        self._others = losses

    def state_dict(self) -> dict[str, Any]:
        counts = (self._epoch, self._in_epoch, self._in_last_epoch)
        return {"losses": self.losses, "others": self._others, "counts": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.losses, self._others = state["losses"], state["others"]
        self._epoch, self._in_epoch, self._in_last_epoch = state["counts"]
