"""Keep a sample with a probability proportional to its loss."""

from __future__ import annotations

import torch

from loopwise import validate

from .past import PastLosses
from .policy import Policy, Pool, check_floor


class ProportionalLoss(Policy):
    """Keep probability = loss / mean loss, at most 1 and at least ``floor``.

    The rule keeps the scale of the losses, which percentiles discard.  Where losses are nearly equal, as those of
    windows of text are, nearly every sample is kept.  Where a few samples have most of the loss, most others are left
    out.  So the share of kept samples is a result, not an argument, and it falls while the model learns.

    A probability proportional to the loss is that of prioritized experience replay (Schaul et al., ICLR 2016, with
    alpha = 1) and stands for importance sampling by the norm of the gradient (Katharopoulos and Fleuret 2018).  Changed
    here: samples are drawn at most once an epoch and without importance weights, those above the mean are always kept,
    and the floor lets every sample return, on average at least every 1 / ``floor`` epochs.

    If there are losses below 0, all are counted from the lowest one.  Equal losses are all kept.

    Args:
        floor: least keep probability, in [0, 1).
        history: number of past losses whose mean is taken if samples are scored as they come.  An epoch that is planned
            by remembered losses takes the mean of all of them.
    """

    state, settings = ("_past",), ("floor", "history")

    def __init__(self, floor: float = 0.125, *, history: int = 2048) -> None:
        self.floor = check_floor(floor)
        self.history = validate.whole_number("history", history, 2, "losses", example=2048)
        self._past = PastLosses(self.history)

    @property
    def reaches_all(self) -> bool:  # type: ignore[override]
        """True with a floor."""
        return self.floor > 0

    def probabilities(self, pool: Pool) -> torch.Tensor:
        compared = self._past.compared_with(pool).double()
        if not len(compared):
            return torch.ones(len(pool))
        lowest = compared.min().clamp(max=0.0)
        mean = (compared - lowest).mean()
        if mean <= 0:
            return torch.ones(len(pool))
        return ((pool.losses.double() - lowest) / mean).clamp(self.floor, 1.0).float()

    def losses_to_share(self) -> torch.Tensor:
        return self._past.losses

    def receive_losses(self, losses: torch.Tensor) -> None:
        """Take the mean over the past losses of the other ranks too."""
        self._past.receive(losses)
