"""Sizes of updates relative to the sizes of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from ..statistics.chunk_sums import uploaded
from ..statistics.sample import sample
from ..torch_internals import differences, norms


class Sizes(NamedTuple):
    """Sizes of the updates of one step."""

    names: tuple[str, ...]
    """``update/<parameter>``."""
    values: torch.Tensor
    """float64 of shape (weights, 2) on their device: root mean square of the weight, and size of its update divided by
    the weight's (the size itself if the weight is zero)."""
    signature: tuple[tuple[torch.dtype, torch.Size], ...]
    """Dtype and shape of the weights."""


class UpdateSizes:
    """Samples of weights before the updates of one step, compared with the weights after them."""

    def __init__(self) -> None:
        self._before: list[tuple[str, nn.Parameter, torch.Tensor]] = []

    def add(self, named: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Copy a sample of each weight that is about to be updated."""
        self._before += [(name, parameter, sample(parameter).clone()) for name, parameter in named]

    @property
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Names and weights."""
        return [(name, parameter) for name, parameter, _ in self._before]

    def table(self) -> Sizes | None:
        """Return the sizes of the updates; ``None`` if there were none."""
        if not self._before:
            return None
        before = [old.double() for _, _, old in self._before]
        after = [sample(parameter).double() for _, parameter, _ in self._before]
        device = before[0].device
        change = torch.stack([n.to(device) for n in norms(differences(after, before))])
        size = torch.stack([n.to(device) for n in norms(before)])
        count = uploaded([len(old) for old in before], torch.float64, device)
        values = torch.stack([size / count.sqrt(), torch.where(size > 0, change / size, change)], dim=1)
        names = tuple(f"update/{name}" for name, _, _ in self._before)
        return Sizes(names, values, tuple((p.dtype, p.shape) for _, p, _ in self._before))
