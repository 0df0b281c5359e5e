"""Arguments of the loader for cheaper scoring and for padded batches: a lower resolution, a join that pads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from loopwise import batch as batches
from loopwise import validate
from loopwise.errors import InputError


class LowResolution(nn.Module):
    """``model`` on images of a lower resolution, for ``scorer=``: scale 0.5 costs about a quarter.

    The idea is that of Composer's ``scale_factor`` and of JEST's approximate scoring (2024).  Inputs are images of
    shape (batch, channels, height, width), and the model takes images of any size.

    Args:
        model: the model in training; its weights are shared, not copied.
        scale: height and width to score at, as a fraction of the input's, in (0, 1).
    """

    def __init__(self, model: nn.Module, scale: float = 0.5) -> None:
        super().__init__()
        expected, fix = "the model in training, an nn.Module", "pass LowResolution(model, scale=0.5)"
        self.model = validate.instance("model", model, nn.Module, expected, fix)
        self.scale = validate.fraction("scale", scale, "the resolution to score at", 0.5)

    def forward(self, images: torch.Tensor) -> Any:
        """Return the model's output for float images of shape (batch, channels, height, width), scaled down."""
        small = nn.functional.interpolate(
            images, scale_factor=self.scale, mode="bilinear", recompute_scale_factor=False
        )
        return self.model(small)


class Padded:
    """Function that joins batches that were padded to different lengths, for ``concatenate=``.

    Args:
        values: field -> value to pad with, such as ``{"input_ids": 0, "labels": -100}``; other fields are padded with 0.

    Raises:
        InputError: ``values`` is no mapping; in a call: batches without named fields.
    """

    def __init__(self, values: Mapping[str, float] | None = None) -> None:
        expected = "a mapping from a field of the batch to the value to pad with"
        fix = 'pass for instance Padded({"input_ids": 0, "labels": -100})'
        values = {} if values is None else values
        self.values = dict(
            validate.instance("values", values, Mapping, expected, fix, "one value for all fields")
        )

    def __call__(self, parts: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> Any:
        if not all(isinstance(part, Mapping) for part in parts):
            raise InputError(
                f"batches to pad: {batches.describe(parts[0])}",
                "batches with named fields, such as dicts",
                "Padded was passed for a loader of tuples or tensors",
                "pass a function of your own as concatenate=, or pad every batch to one length",
            )
        padded = [{name: self._pad(name, part[name], parts) for name in part} for part in parts]
        joined = batches.concatenate(padded, sizes)
        return joined if isinstance(parts[0], dict) else type(parts[0])(joined)  # type: ignore[call-arg]

    def _pad(self, name: str, value: Any, parts: Sequence[Mapping[str, Any]]) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim < 2:
            return value
        missing: list[int] = []
        for dimension in range(value.ndim - 1, 0, -1):  # the last dimension comes first
            longest = max(part[name].shape[dimension] for part in parts)
            missing += [0, longest - value.shape[dimension]]
        return nn.functional.pad(value, missing, value=self.values.get(name, 0))
