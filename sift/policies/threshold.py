"""Keep the samples whose loss reaches a fixed value."""

from __future__ import annotations

import math

import torch

from loopwise.errors import InputError

from .policy import Policy, Pool, check_floor


class Threshold(Policy):
    """Keep the samples with a loss of at least ``loss``, and the rest with the probability ``floor``.

    The rule is a hinge, as in perceptrons and SVMs: a sample with a small loss is not trained on.  The share of
    kept samples is not fixed; it falls while the model learns, and the time of an epoch falls with it.  A floor brings
    back samples that the model has forgotten, and bounds importance weights.

    Args:
        loss: least loss that is always kept, a finite number in the criterion's units.
        floor: keep probability of the samples below, a number in [0, 1).
    """

    settings = ("loss", "floor")

    def __init__(self, loss: float, floor: float = 0.0) -> None:
        if isinstance(loss, bool) or not isinstance(loss, (int, float)) or not math.isfinite(loss):
            raise InputError(
                f"loss={loss!r}",
                "the least loss that is always kept, a finite number",
                "a criterion was passed instead of a value of it",
                "pass a loss that a well learned sample has, for instance loss=0.1",
            )
        self.loss, self.floor = float(loss), check_floor(floor)

    @property
    def reaches_all(self) -> bool:  # type: ignore[override]
        """True with a floor."""
        return self.floor > 0

    def probabilities(self, pool: Pool) -> torch.Tensor:
        return torch.where(pool.losses >= self.loss, 1.0, self.floor).float()
