"""Leave out a part of what is already learned better than the average."""

from __future__ import annotations

import torch

from loopwise.errors import InputError

from .policy import Policy, Pool


class PrunedHistory(Policy):
    """Keep a sample whose loss is below the pool's mean with probability 1 - ``ratio``, others always.

    InfoBatch (Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning",
    ICLR 2024).  It decides by remembered losses: where the loader remembers them (the default with
    a criterion and a plain ``DataLoader``), the pool is all samples with a known loss, once an
    epoch and with no extra forward pass.  The other two parts of the method are the loader's:
    ``weights=True`` is the rescaling, which makes the gradient unbiased, and ``epochs`` with
    ``anneal=0.125`` trains the last eighth of the epochs on all data.  Changed here: a sample not
    seen before is kept, instead of one with an assumed loss of 3; draws are independent.

    Losses are skewed to the right, so most samples are below the mean: expect about a third of
    them to be left out with ``ratio=0.5``.

    Args:
        ratio: share of the samples below the mean that is left out, a number in (0, 1).
    """

    needs = frozenset({"indices"})

    def __init__(self, ratio: float = 0.5) -> None:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < 1:
            raise InputError(
                f"ratio={ratio!r}",
                "the share of the samples below the mean that is left out, a number in (0, 1)",
                "a percentage instead of a fraction, or 1: then no weight makes up for the ones left out",
                "pass a fraction, for instance ratio=0.5",
            )
        self.ratio = float(ratio)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        losses = pool.losses.double()  # the mean of equal losses is exact: none is below it
        return torch.where(losses < losses.mean(), 1 - self.ratio, 1.0).float()

    def __repr__(self) -> str:
        return f"PrunedHistory(ratio={self.ratio:g})"
