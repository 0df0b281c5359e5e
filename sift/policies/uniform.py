"""Keep samples at random."""

from __future__ import annotations

import torch

from .policy import Policy, Pool, check_keep


class Uniform(Policy):
    """Keep every sample with the same probability, whatever its loss.

    This is the baseline of every comparison: a method that reaches no better model than this one with the same share
    of samples has gained nothing by looking at the losses, and many gain nothing (Okanovic et al., "Repeated Random
    Sampling for Minimizing the Time-to-Accuracy of Learning", ICLR 2024).  Changed here: draws are independent, and the
    number of samples of an epoch varies.

    Args:
        keep: share of samples to keep, a fraction in (0, 1].
    """

    settings = ("keep",)

    def __init__(self, keep: float = 0.5) -> None:
        self.keep = check_keep(keep)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        return torch.full((len(pool),), self.keep)
