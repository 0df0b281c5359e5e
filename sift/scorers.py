"""Cheaper scorers and joins: lower resolution, padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise.errors import InputError


class LowResolution(nn.Module):
    """``model`` on images of a lower resolution, for ``scorer=``: scale 0.5 costs about a quarter.

    The idea of Composer's ``scale_factor`` and of JEST's approximate scoring (2024).  Inputs are
    images of shape (batch, channels, height, width) and a model that takes any size.

    Args:
        model: the model in training; its weights are shared, not copied.
        scale: height and width as a fraction of the given ones, in (0, 1).
    """

    def __init__(self, model: nn.Module, scale: float = 0.5) -> None:
        super().__init__()
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < 1:
            raise InputError(
                f"scale={scale!r}",
                "the resolution to score at, a fraction in (0, 1)",
                "a size in pixels or a percentage",
                "pass for instance scale=0.5",
            )
        self.model = model
        self.scale = float(scale)

    def forward(self, images: torch.Tensor) -> Any:
        small = nn.functional.interpolate(
            images, scale_factor=self.scale, mode="bilinear", recompute_scale_factor=False
        )
        return self.model(small)


class Padded:
    """Joins batches that were padded to different lengths, for ``concatenate=``.

    Args:
        values: field -> value to pad with, such as ``{"input_ids": 0, "labels": -100}``; fields not
            named are padded with 0.
    """

    def __init__(self, values: Mapping[str, float] | None = None) -> None:
        self.values = dict(values or {})

    def __call__(self, parts: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Any:
        padded = [{name: self._padded(name, part[name], parts) for name in part} for part in parts]
        joined = batches.concatenate(padded, sizes)
        return joined if isinstance(parts[0], dict) else type(parts[0])(joined)  # type: ignore[call-arg]

    def _padded(self, name: str, value: Any, parts: Sequence[Mapping[str, Any]]) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim < 2:
            return value
        missing: list[int] = []
        for dimension in range(value.ndim - 1, 0, -1):  # the last dimension comes first
            longest = max(part[name].shape[dimension] for part in parts)
            missing += [0, longest - value.shape[dimension]]
        return nn.functional.pad(value, missing, value=self.values.get(name, 0))
