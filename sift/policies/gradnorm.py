"""Keep a sample with a probability proportional to the size of its gradient."""

from __future__ import annotations

import torch

from .policy import Policy, Pool, check_keep

LARGEST = torch.finfo(torch.float32).max


class GradNorm(Policy):
    """Keep probability = min(1, c * norm of the loss's gradient by the model's output).

    The rule is the importance sampling of Katharopoulos and Fleuret ("Not All Samples Are Created Equal: Deep Learning
    with Importance Sampling", ICML 2018).  The gradient at the last layer bounds that of all parameters up to a
    constant, costs no backward pass through the model, and drawing in proportion to it gives nearly the least variance.
    With the loader's ``weights=True`` the gradient of the training is unbiased; without, training sees the large
    gradients only.  Changed here: samples are drawn independently and at most once instead of with replacement, so
    probabilities are cut at 1, and c is solved exactly so that they sum to ``keep`` times the pool's size; and the
    predicted gain is no condition (the loader's ``auto`` measures it).

    Samples with a gradient of 0 are kept only if the others are fewer than the share, with equal probabilities.  A
    gradient that is not finite counts as the largest.

    Args:
        keep: expected share of each pool to keep, a fraction in (0, 1].
    """

    needs, settings = frozenset({"gradients"}), ("keep",)

    def __init__(self, keep: float = 0.5) -> None:
        self.keep = check_keep(keep)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        assert pool.gradients is not None
        norms = pool.gradients.double().nan_to_num(nan=LARGEST, posinf=LARGEST)
        return _fill(norms, self.keep * len(pool)).float()


def _fill(norms: torch.Tensor, total: float) -> torch.Tensor:
    """Return min(1, c * ``norms``) with the c for which they sum to ``total``: float64 of the same shape.

    If the k largest are cut at 1, c is (total - k) / (sum of the others).  The right k is the first for which the
    largest of the others is not above 1; it is not above 1 for any larger k either.
    """
    if not len(norms):
        return norms
    largest_first = norms.sort(descending=True).values
    others = (
        largest_first.flip(0).cumsum(0).flip(0)
    )  # sums of the gradients without the k largest ones, for each k
    left = total - torch.arange(len(norms), dtype=torch.float64)
    cut = int((largest_first * left <= others).int().argmax())
    if others[cut] > 0:
        return (norms * (left[cut] / others[cut])).clamp(max=1.0)
    return torch.where(norms > 0, 1.0, left[cut] / (len(norms) - cut))
