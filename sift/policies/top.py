"""Keep the samples of the highest loss."""

from __future__ import annotations

import torch

from .policy import Policy, Pool, check_keep, top


class TopLoss(Policy):
    """Keep the share ``keep`` of each pool that has the highest losses, the rest not at all.

    The rule of online batch selection (Loshchilov and Hutter 2015) with a hard cut.  Fractions of
    a sample are carried to the next pool, so that the share holds over time whatever the batch
    size.  Under label noise the highest losses are wrong labels: prefer ``RelativeLoss`` there.

    Args:
        keep: share of samples kept, a fraction in (0, 1].
    """

    state = ("_owed",)

    def __init__(self, keep: float = 0.5) -> None:
        self.keep = check_keep(keep)
        self._owed = 0.0

    def probabilities(self, pool: Pool) -> torch.Tensor:
        probabilities, self._owed = top(self.keep, pool.losses, self._owed)
        return probabilities

    def __repr__(self) -> str:
        return f"TopLoss(keep={self.keep:g})"
