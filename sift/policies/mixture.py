"""Combine several policies."""

from __future__ import annotations

import math
from typing import Any

import torch

from loopwise.errors import InputError

from .nested import Nested, PolicyLike
from .policy import Pool


class Mixture(Nested):
    """Keep probability = the weighted mean of the keep probabilities of its parts.

    The result is the same as drawing a part for each sample, by the weights, to decide about it.  A part of ``Uniform``
    lets every sample return and bounds importance weights, as the mixture of loss-based and uniform sampling in
    Katharopoulos and Fleuret (2018).  ``keep`` is the weighted mean of the shares of the parts; setting it sets it in
    each of them.

    Args:
        parts: pairs of a weight and a policy, such as ``(0.8, TopLoss(0.5)), (0.2, Uniform(0.5))``.  Weights are
            positive; they are scaled to sum to 1.
    """

    def __init__(self, *parts: tuple[float, PolicyLike]) -> None:
        if not parts or not all(_is_part(part) for part in parts):
            raise InputError(
                f"parts {', '.join(map(repr, parts)) or '(none)'}",
                "one or more pairs of a weight and a policy, the weights positive and finite",
                "policies without a weight, or a weight of 0 to switch a policy off",
                "pass for instance Mixture((0.8, TopLoss(0.5)), (0.2, Uniform(0.5)))",
            )
        super().__init__(*(policy for _, policy in parts))
        total = math.fsum(weight for weight, _ in parts)
        self.weights = tuple(weight / total for weight, _ in parts)

    def probabilities(self, pool: Pool) -> torch.Tensor:
        mean = torch.zeros(len(pool), dtype=torch.float64)
        for weight, part in zip(self.weights, self.parts, strict=True):
            mean += weight * part.decide(pool)
        return mean.float()

    def _shown_parts(self) -> list[str]:
        parts = zip(self.weights, self.parts, strict=True)
        return [f"({weight:g}, {part!r})" for weight, part in parts]


def _is_part(part: Any) -> bool:
    if not isinstance(part, (tuple, list)) or len(part) != 2 or isinstance(part[0], bool):
        return False
    return isinstance(part[0], (int, float)) and 0 < part[0] < math.inf
