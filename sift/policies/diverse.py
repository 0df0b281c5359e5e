"""Keep samples that are hard and unlike each other."""

from __future__ import annotations

import torch

from loopwise.errors import InputError

from .policy import Policy, Pool, check_keep, take

SAME = 1e-6
"""Distance of unit vectors below which they are the same: float32 features tell no closer apart."""


class Diverse(Policy):
    """Keep the share ``keep`` of each pool, one after the other: hard, and far from those chosen before.

    Greedy farthest-point selection, the 2-approximation of k-center in the core-set selection of
    Sener and Savarese ("Active Learning for Convolutional Neural Networks: A Core-Set Approach",
    ICLR 2018), on the model's outputs scaled to length 1.  Changed here: it starts with the highest
    loss, and each further choice has the highest ``spread`` * distance + (1 - ``spread``) *
    percentile of the loss, where the distance is to the nearest sample chosen, as a part of the
    largest such distance.  Duplicates of a chosen sample come last, whatever their loss.  Fractions
    of a sample are carried to the next pool.  Costs ``keep`` * n * n * d multiplications for n samples
    with d outputs, on the CPU.

    Args:
        keep: share of samples kept, a fraction in (0, 1].
        spread: 0: by the losses alone (but for duplicates), 1: by the distances alone.
    """

    needs = frozenset({"features"})
    state = ("_owed",)

    def __init__(self, keep: float = 0.5, spread: float = 0.5) -> None:
        if isinstance(spread, bool) or not isinstance(spread, (int, float)) or not 0 <= spread <= 1:
            raise InputError(
                f"spread={spread!r}",
                "the part that distance has in the choice, a number in [0, 1]",
                "a percentage or a distance instead of a fraction",
                "pass a fraction, for instance spread=0.5",
            )
        self.keep, self.spread = check_keep(keep), float(spread)
        self._owed = 0.0

    def probabilities(self, pool: Pool) -> torch.Tensor:
        assert pool.features is not None
        count, self._owed = take(self.keep, len(pool), self._owed)
        features = pool.features.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        features = torch.nn.functional.normalize(features, dim=1)
        squares = features.square().sum(1)  # 1, but 0 where all features are 0
        ranked = pool.losses.sort().values
        percentile = torch.searchsorted(ranked, pool.losses, right=True) / max(len(pool), 1)
        probabilities, score = torch.zeros(len(pool)), percentile
        nearest = torch.full_like(squares, torch.inf)
        for _ in range(count):
            choice = int(score.argmax())
            probabilities[choice] = 1.0
            distance = squares + squares[choice] - 2 * (features @ features[choice])
            nearest = torch.minimum(nearest, distance.clamp_min(0).sqrt())
            far = nearest / nearest.max().clamp_min(SAME)
            score = self.spread * far + (1 - self.spread) * percentile
            score = score - 2.0 * (nearest < SAME)  # duplicates come after all others, ...
            score[probabilities > 0] = -torch.inf  # ... and what is chosen not again
        return probabilities

    def __repr__(self) -> str:
        return f"Diverse(keep={self.keep:g}, spread={self.spread:g})"
