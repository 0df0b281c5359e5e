"""Keep the samples with the highest losses."""

from __future__ import annotations

import torch

from .policy import Policy, Pool, check_keep, top


class TopLoss(Policy):
    """Keep the samples with the highest losses, the share ``keep`` of each pool.

    The rule is online batch selection (Loshchilov and Hutter 2015) without random draws.  Fractions of a sample are carried
    to the next pool, so that the share holds over time for any batch size.  Under label noise the highest losses are
    wrong labels: prefer ``RelativeLoss`` then.

    Args:
        keep: share of samples to keep, a fraction in (0, 1].
    """

    reaches_all = False
    state, settings = ("_carried",), ("keep",)

    def __init__(self, keep: float = 0.5) -> None:
        self.keep = check_keep(keep)
        self._carried = 0.0

    def probabilities(self, pool: Pool) -> torch.Tensor:
        probabilities, self._carried = top(self.keep, pool.losses, self._carried)
        return probabilities
