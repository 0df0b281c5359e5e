"""Keep a sample with a probability that grows with the percentile of its loss."""

from __future__ import annotations

import torch

from loopwise import validate
from loopwise.errors import InputError

from .past import PastLosses
from .policy import Policy, Pool, check_floor, check_keep

RECENT, STEPS = 256, 20
"""Number of percentiles that the exponent is fitted to, of two pools of ordinary size, and the most steps for it."""


class RelativeLoss(Policy):
    """Keep probability = floor + (1 - floor) * (percentile of the loss among the last ones) ** ``beta``.

    The rule is that of Selective-Backprop (Jiang et al. 2019) and of SageMaker smart sifting, which have no floor.
    Percentiles are uniform, so without a floor the expected share of kept samples is 1 / (1 + beta): beta 0.5 keeps
    67 %, 1 keeps 50 %, 3 keeps 25 %.  Changed here: equal losses take the middle of their percentiles, so that they
    keep that share too; a loss is ranked in a history that already contains its own pool, so that the very first pool
    is ranked as well; the history has at most one epoch; and a floor lets every sample return, with bounded importance
    weights: on average at least every 1 / floor epochs.

    Args:
        keep: expected share of samples to keep, a fraction in (0, 1].  It sets ``beta``, and holds while losses fall and
            new ones have low percentiles: the exponent is the one that gives the share to the last 256 percentiles.
        beta: selectivity, >= 0, instead of ``keep``; a larger one keeps fewer samples.  It is the exponent as it is.
        floor: least keep probability, in [0, 1), less than ``keep``.
        history: number of past losses that a new loss is ranked among if samples are scored as they come.
    """

    state, settings = ("_past", "_recent"), ("beta", "floor", "history")

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
        self._holds_share = beta is None
        if beta is None:
            self.keep = 0.5 if keep is None else keep
        else:
            self.beta = float(beta)
        self._recent = torch.empty(0, dtype=torch.float64)
        self._past = PastLosses(self.history)

    @property
    def reaches_all(self) -> bool:  # type: ignore[override]
        """True with a floor, or if all samples are kept; else the lowest loss has next to no chance."""
        return self.floor > 0 or self.beta == 0

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
        self._holds_share = True

    def probabilities(self, pool: Pool) -> torch.Tensor:
        percentile, exponent = _percentile(self._past.compared_with(pool), pool.losses), self.beta
        if self._holds_share and len(pool):
            if not pool.planned:
                self._recent = torch.cat([self._recent, percentile])[-max(RECENT, len(pool)) :]
            exponent = _exponent(percentile if pool.planned else self._recent, 1 / (1 + self.beta))
        return (self.floor + (1 - self.floor) * percentile**exponent).float()

    def losses_to_share(self) -> torch.Tensor:
        return self._past.losses

    def receive_losses(self, losses: torch.Tensor) -> None:
        """Rank among the past losses of the other ranks too, which makes percentiles global."""
        self._past.receive(losses)


def _exponent(percentiles: torch.Tensor, mean: float) -> float:
    """Return the exponent with which the percentiles, in (0, 1), have this mean, by Newton's method.

    The mean of the powers is a convex and falling function of the exponent, so the steps from 0 never go too far.
    """
    logarithms, exponent = percentiles.log(), 0.0
    for _ in range(STEPS):
        powers = (exponent * logarithms).exp()
        excess = float(powers.mean()) - mean
        if excess < 1e-6:
            break
        exponent -= excess / float((powers * logarithms).mean())
    return exponent


def _percentile(losses: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the share of ``losses`` below each of ``values``, counting equal ones half: float64."""
    ranked = losses.sort().values
    below = torch.searchsorted(ranked, values, right=False) + torch.searchsorted(ranked, values, right=True)
    return below.to(torch.float64) / (2 * max(len(ranked), 1))
