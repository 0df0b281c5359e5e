"""Leave out a part of the samples with a loss below the average."""

from __future__ import annotations

import torch

from loopwise import validate

from .policy import Policy, Pool


class PrunedHistory(Policy):
    """Keep a sample whose loss is below the pool's mean with probability 1 - ``ratio``, and all others always.

    The rule is InfoBatch (Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR
    2024).  It decides by remembered losses if the loader remembers them (the default with a criterion and a plain
    ``DataLoader``): the pool is then all samples with a known loss, once an epoch, without an extra forward pass.  The
    other two parts of the method are options of the loader: ``weights=True`` rescales the losses, which makes the
    gradient unbiased, and ``epochs`` with ``anneal=0.125`` trains the last eighth of the epochs on all data.  Changed
    here: a sample without a known loss is kept, instead of assuming a loss of 3, and draws are independent.

    Losses are skewed to the right, so most samples are below the mean: with ``ratio=0.5`` about a third of all samples
    is left out.

    Args:
        ratio: share of the samples below the mean that is left out, a number in (0, 1).
    """

    needs, settings = frozenset({"indices"}), ("ratio",)

    def __init__(self, ratio: float = 0.5) -> None:
        meaning = "the share of the samples below the mean that is left out"
        self.ratio = validate.fraction("ratio", ratio, meaning, 0.5)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        losses = pool.losses.double()  # the mean of equal losses is exact: none of them is below it
        return torch.where(losses < losses.mean(), 1 - self.ratio, 1.0).float()
