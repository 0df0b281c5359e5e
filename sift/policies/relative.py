"""Keep a sample with a probability that grows with the percentile of its loss."""

from __future__ import annotations

import torch

from loopwise import validate
from loopwise.errors import InputError

from .policy import Policy, Pool, check_floor, check_keep


class RelativeLoss(Policy):
    """Keep probability = floor + (1 - floor) * (percentile of the loss among the last ones) ** ``beta``.

    The rule is that of Selective-Backprop (Jiang et al. 2019) and of SageMaker smart sifting, which have no floor.
    Percentiles are uniform, so without a floor the expected share of kept samples is 1 / (1 + beta): beta 0.5 keeps
    67 %, 1 keeps 50 %, 3 keeps 25 %.  Changed here: equal losses take the middle of their percentiles, so that they
    keep that share too; a loss is ranked in a history that already contains its own pool, so that the very first pool
    is ranked as well; and a floor lets every sample return, with bounded importance weights: on average at least every
    1 / floor epochs.

    Args:
        keep: expected share of samples to keep, a fraction in (0, 1]; sets ``beta``.
        beta: selectivity, >= 0, instead of ``keep``; a larger one keeps fewer samples.
        floor: least keep probability, in [0, 1), less than ``keep``.
        history: number of past losses that a new loss is ranked among.
    """

    state, settings = ("_past", "_other_ranks"), ("beta", "floor", "history")

    def __init__(
        self,
        keep: float | None = None,
        *,
        beta: float | None = None,
        floor: float = 0.0,
        history: int = 2048,
    ) -> None:
        if keep is not None and beta is not None:
            raise InputError(
                f"keep={keep!r} and beta={beta!r}",
                "one of keep and beta",
                "both set the share of kept samples: without a floor keep = 1 / (1 + beta)",
                "drop one of the two",
            )
        self.floor = check_floor(floor)
        if beta is not None and (
            isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta < float("inf")
        ):
            raise InputError(
                f"beta={beta!r}",
                "a finite number of at least 0",
                "beta is an exponent: 0 keeps all, 1 half, 3 a quarter",
                "pass for instance beta=1.0",
            )
        self.history = validate.whole_number("history", history, 2, "losses", example=2048)
        if beta is None:
            self.keep = 0.5 if keep is None else keep
        else:
            self.beta = float(beta)
        self._past = torch.empty(0)
        self._other_ranks = torch.empty(0)

    @property
    def keep(self) -> float:
        """Expected share of kept samples; an assignment changes ``beta``."""
        return self.floor + (1 - self.floor) / (1 + self.beta)

    @keep.setter
    def keep(self, keep: float) -> None:
        if check_keep(keep) <= self.floor:
            raise InputError(
                f"keep={keep!r} with floor={self.floor!r}",
                "a floor below keep",
                "the floor alone keeps as much",
                f"pass for instance floor={keep / 4:g}",
            )
        self.beta = (1 - self.floor) / (keep - self.floor) - 1

    def probabilities(self, pool: Pool) -> torch.Tensor:
        self._past = torch.cat([self._past, pool.losses])[-max(self.history, len(pool)) :]
        below = len(self._past) * _percentile(self._past, pool.losses)
        below = below + len(self._other_ranks) * _percentile(self._other_ranks, pool.losses)
        percentile = below / max(len(self._past) + len(self._other_ranks), 1)
        return (self.floor + (1 - self.floor) * percentile**self.beta).float()

    def losses_to_share(self) -> torch.Tensor:
        return self._past

    def receive_losses(self, losses: torch.Tensor) -> None:
        """Rank among the past losses of the other ranks too, which makes percentiles global."""
        self._other_ranks = losses


def _percentile(losses: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the share of ``losses`` below each of ``values``, counting equal ones half: float64."""
    ranked = losses.sort().values
    below = torch.searchsorted(ranked, values, right=False) + torch.searchsorted(ranked, values, right=True)
    return below.to(torch.float64) / (2 * max(len(ranked), 1))
