"""Relative errors of tensors, measured as root mean squares."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEGLIGIBLE = 1e-4
"""Gradients smaller than this share of the largest one are rounding noise (a bias before BatchNorm)."""


def relative_errors(observed: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Return the relative error of each floating-point tensor of a step."""
    least = least_sizes(observed)
    floats = {n: value for n, value in observed.items() if value.is_floating_point() or value.is_complex()}
    return {n: relative_error(value, exact[n], least.get(n, 0.0)) for n, value in floats.items()}


def least_sizes(observed: dict[str, Tensor]) -> dict[str, float]:
    """Return, for each gradient and running mean, the smallest size by which its error is divided."""
    gradients = [name for name in observed if name.startswith("gradient/")]
    negligible = NEGLIGIBLE * max((_size(observed[name]) for name in gradients), default=0.0)
    sizes = dict.fromkeys(gradients, negligible)
    for name in observed:
        variance = name.removesuffix("mean") + "var"
        if name.endswith("running_mean") and variance in observed:  # a mean may be 0 apart from rounding
            sizes[name] = math.sqrt(_size(observed[variance]))
    return sizes


def relative_error(tensor: Tensor, expected: Tensor, least: float) -> float:
    """Return the size of the difference over the size of ``expected``, or over ``least`` if that is larger.

    NaNs at the same places agree.
    """
    if not tensor.numel():
        return 0.0
    dtype = torch.promote_types(torch.promote_types(tensor.dtype, expected.dtype), torch.float32)
    tensor, expected = _dense(tensor).to(dtype), _dense(expected).to(dtype)
    difference = _root_mean_square(tensor - expected)
    if not math.isfinite(difference):
        same = (tensor == expected) | (tensor.isnan() & expected.isnan())
        difference = _root_mean_square(torch.where(same, 0.0, tensor - expected))
    size = max(_size(expected), least)
    if difference == 0.0:
        return 0.0
    return difference / size if size > 0 and math.isfinite(difference) else math.inf


def _size(tensor: Tensor) -> float:
    """Return the root mean square; 0 for an empty tensor or one that is not finite."""
    size = _root_mean_square(tensor) if tensor.numel() else 0.0
    return size if math.isfinite(size) else 0.0


def _dense(tensor: Tensor) -> Tensor:
    """Return a sparse tensor as a dense one, and a dense one unchanged."""
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _root_mean_square(tensor: Tensor) -> float:
    """Return the root mean square, summed up in float64."""
    norm: float = torch.linalg.vector_norm(_dense(tensor).abs(), dtype=torch.float64).item()
    return norm / math.sqrt(tensor.numel())


@torch.no_grad()
def update_error(updated: list[Tensor], expected: list[Tensor], before: list[Tensor]) -> float:
    """Return the distance of updated tensors from the expected ones, relative to the size of the expected update.

    All tensors share one error.  It is infinite if the expected update changes nothing and the tensors differ all the
    same.
    """
    error = change = 0.0
    for tensor, reference, start in zip(updated, expected, before, strict=True):
        exact = reference.double()  # tensors of bool cannot be subtracted
        error += (exact - tensor.double()).square().sum().item()
        change += (exact - start.double()).square().sum().item()
    return (error / change) ** 0.5 if change else float("inf" if error else 0)
