"""Keep the samples whose loss reaches a fixed value."""

from __future__ import annotations

import math

import torch

from loopwise.errors import InputError

from .policy import Policy, Pool, check_floor


class Threshold(Policy):
    """Keep the samples with a loss of at least ``loss``, the rest with the probability ``floor``.

    A hinge, as perceptrons and SVMs have it: what is learned well enough is left alone.  The share
    kept is not fixed; it falls as the model learns, and with it the time that an epoch takes.  With
    a floor, samples that are forgotten again are found again, and importance weights are bounded.

    Args:
        loss: least loss that is always kept, a finite number in the criterion's units.
        floor: keep probability of the samples below, a number in [0, 1).
    """

    def __init__(self, loss: float, floor: float = 0.0) -> None:
        if isinstance(loss, bool) or not isinstance(loss, (int, float)) or not math.isfinite(loss):
            raise InputError(
                f"loss={loss!r}",
                "the least loss that is always kept, a finite number",
                "a criterion was passed instead of a value of it",
                "pass a loss that a well learned sample has, for instance loss=0.1",
            )
        self.loss, self.floor = float(loss), check_floor(floor)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        return torch.where(pool.losses >= self.loss, 1.0, self.floor).float()

    def __repr__(self) -> str:
        return f"Threshold(loss={self.loss:g}, floor={self.floor:g})"
