"""Keep a sample with the probability that its loss's percentile gives it."""

from __future__ import annotations

import torch

from loopwise.errors import InputError

from .policy import Policy, Pool, check_floor, check_keep


class RelativeLoss(Policy):
    """Keep probability = floor + (1 - floor) * (percentile of the loss among the last ones) ** ``beta``.

    The rule of Selective-Backprop (Jiang et al. 2019) and of SageMaker smart sifting, with
    ``floor=0``.  Percentiles are uniform, so without a floor the expected share kept is
    1 / (1 + beta): beta 0.5 keeps 67 %, 1 keeps 50 %, 3 keeps 25 %.  Changed here: a tie takes the
    middle of its percentiles, so that equal losses keep that share too; a loss is ranked in a
    history that already contains its own pool, so that the very first pool is sifted sensibly; and
    a floor keeps every sample in play, with bounded importance weights: sample it every 1 / floor
    epochs at least, on average.

    Args:
        keep: expected share of samples kept, a fraction in (0, 1]; sets ``beta``.
        beta: selectivity, >= 0, instead of ``keep``; larger keeps fewer.
        floor: least keep probability, in [0, 1), less than ``keep``.
        history: number of past losses that a new one is ranked among.
    """

    state = ("_past", "_elsewhere")

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
                "both say how much is kept: without a floor keep = 1 / (1 + beta)",
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
        if isinstance(history, bool) or not isinstance(history, int) or history < 2:
            raise InputError(
                f"history={history!r}",
                "a whole number of losses, at least 2",
                "a percentile needs something to be ranked among",
                "pass for instance history=2048",
            )
        self.history = history
        if beta is None:
            self.keep = 0.5 if keep is None else keep
        else:
            self.beta = float(beta)
        self._past = torch.empty(0)
        self._elsewhere = torch.empty(0)

    @property
    def keep(self) -> float:
        """Expected share of samples kept; setting it sets ``beta``."""
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
        below = below + len(self._elsewhere) * _percentile(self._elsewhere, pool.losses)
        percentile = below / max(len(self._past) + len(self._elsewhere), 1)
        return (self.floor + (1 - self.floor) * percentile**self.beta).float()

    def tell(self) -> torch.Tensor:
        """Past losses, for the policies of the other ranks."""
        return self._past

    def hear(self, others: torch.Tensor) -> None:
        """Rank among the past losses of the other ranks, too: percentiles are global, as of then."""
        self._elsewhere = others

    def __repr__(self) -> str:
        return f"RelativeLoss(beta={self.beta:g}, floor={self.floor:g}, history={self.history})"


def _percentile(losses: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    """The share of ``losses`` below each of ``of``, ties counted half: float64."""
    ranked = losses.sort().values
    below = torch.searchsorted(ranked, of, right=False) + torch.searchsorted(ranked, of, right=True)
    return below.to(torch.float64) / (2 * max(len(ranked), 1))
