"""Keep samples by chance alone."""

from __future__ import annotations

import torch

from .policy import Policy, Pool, check_keep


class Uniform(Policy):
    """Keep every sample with the same probability, whatever its loss.

    The baseline of every comparison: at the same share kept, a method that does not reach a better
    model than this one has gained nothing by looking at the losses, and many do not (Okanovic et
    al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", ICLR 2024).
    Changed here: independent draws instead of a fixed number of samples an epoch.

    Args:
        keep: share of samples kept, a fraction in (0, 1].
    """

    def __init__(self, keep: float = 0.5) -> None:
        self.keep = check_keep(keep)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        return torch.full((len(pool),), self.keep)

    def __repr__(self) -> str:
        return f"Uniform(keep={self.keep:g})"
