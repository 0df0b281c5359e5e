"""Comparison of ranks, which the rules about ranks look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RankComparison:
    """Sums of the weights and inputs of rank 0 and of other ranks at one step.

    Attributes:
        ranks: the compared ranks; the first is 0.
        names: names of the compared parameters.
        sums: sum of each parameter on each rank, of shape ``(ranks, parameters)``.
        sizes: sum of the absolute values of each parameter on rank 0, of shape ``(parameters,)``.
        step: the step; 0 before the first update.
        inputs: sum of the model's input on each rank that got the same batch as rank 0, by rank, with rank 0; empty
            if no other rank did.
        repeats: number of successive compared batches that were the same as those of rank 0.
    """

    ranks: Sequence[int]
    names: Sequence[str]
    sums: NDArray[np.float64]
    sizes: NDArray[np.float64]
    step: int
    inputs: dict[int, float]
    repeats: int

    def differing(self, difference: float) -> list[int]:
        """Return the places of parameters whose sums differ by more than ``difference`` times their size."""
        apart = np.abs(self.sums - self.sums[0]).max(0) > difference * self.sizes
        return [int(place) for place in np.flatnonzero(apart)]
