"""Keep samples that are hard and different from each other."""

from __future__ import annotations

import torch

from loopwise import validate

from .policy import Policy, Pool, check_keep, take

SAME = 1e-6
"""Distance below which two unit vectors count as equal: float32 features resolve no smaller one."""


class Diverse(Policy):
    """Choose samples one by one until the share ``keep`` of the pool is reached, by loss and by distance.

    Each choice prefers a high loss and a large distance from the samples chosen before.

    The method is greedy farthest-point selection, the 2-approximation of k-center in the core-set selection of Sener
    and Savarese ("Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018), on the model's
    outputs scaled to length 1.  Changed here: the first choice is the highest loss, and each further choice has the
    highest ``spread`` * distance + (1 - ``spread``) * percentile of the loss.  A sample's distance is its distance to
    the nearest chosen sample, divided by the largest of these distances in the pool.  Duplicates of a chosen sample come last, whatever their loss.
    Fractions of a sample are carried to the next pool.  The cost is ``keep`` * n * n * d multiplications on the CPU for
    n samples with d outputs.

    Args:
        keep: share of samples to keep, a fraction in (0, 1].
        spread: weight of the distance, in [0, 1]; 0 selects by the losses alone (apart from duplicates), 1 by the
            distances alone.
    """

    needs, reaches_all = frozenset({"features"}), False
    state, settings = ("_carried",), ("keep", "spread")

    def __init__(self, keep: float = 0.5, spread: float = 0.5) -> None:
        self.keep = check_keep(keep)
        meaning = "the weight of the distance against the loss"
        self.spread = validate.fraction("spread", spread, meaning, 0.5, zero=True, one=True)
        self._carried = 0.0

    def probabilities(self, pool: Pool) -> torch.Tensor:
        assert pool.features is not None
        count, self._carried = take(self.keep, len(pool), self._carried)
        features = pool.features.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        features = torch.nn.functional.normalize(features, dim=1)
        squares = features.square().sum(1)  # 1, or 0 if all features are 0
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
            score = score - 2.0 * (nearest < SAME)  # duplicates come after all others
            score[probabilities > 0] = -torch.inf  # a chosen sample must not be chosen again
        return probabilities
