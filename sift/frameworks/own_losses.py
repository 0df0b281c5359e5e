"""Losses of the samples of a batch, taken from the loss that the training itself computes for the whole batch."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from loopwise import batch as batches
from loopwise.errors import InputError
from loopwise.warnings import warn

CLASSES = (functional.cross_entropy, functional.nll_loss)
ELEMENTS = (
    functional.binary_cross_entropy,
    functional.binary_cross_entropy_with_logits,
    functional.mse_loss,
    functional.l1_loss,
    functional.smooth_l1_loss,
    functional.huber_loss,
    functional.gaussian_nll_loss,
    functional.poisson_nll_loss,
    functional.soft_margin_loss,
)
LOSSES = (*CLASSES, *ELEMENTS, functional.ctc_loss)
"""Functions whose elements can be recorded."""
CHECKED = 4
"""Number of samples whose recorded losses are compared with the loss of the sample alone, and the last one."""

WholeLoss = Callable[[nn.Module, Any], torch.Tensor]
"""Function from a model and a batch to the loss of the batch, a Tensor of one element."""
_Way = Callable[[nn.Module, Any, int], torch.Tensor]
"""Function from a model, a batch and its size to the losses of its samples."""


class _Part(NamedTuple):
    """One call of a loss function: its elements, their weights in its mean, and which of them count."""

    elements: torch.Tensor
    weights: torch.Tensor
    value: torch.Tensor


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(function)


class _RecordingMode(TorchFunctionMode):
    """Mode in which torch's loss functions record their elements, and return their mean or sum as ever."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[_Part] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in LOSSES:
            return func(*args, **kwargs)
        bound = _signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        reduction = given["reduction"]
        if reduction == "none" or any(given.get(old) is not None for old in ("size_average", "reduce")):
            return func(*args, **kwargs)
        given["reduction"] = "none"
        elements = func(**given)
        weights = _weights(func, given, elements)
        if func is functional.ctc_loss and reduction == "mean":
            elements = elements / given["target_lengths"].to(elements.device).clamp_min(1)
        value = elements.sum() / weights.sum() if reduction == "mean" else elements.sum()
        self.parts.append(_Part(elements, weights, value))
        return value


def _weights(func: Any, given: dict[str, Any], elements: torch.Tensor) -> torch.Tensor:
    """Return the weights of the elements in the mean of a loss function."""
    target = given.get("target")
    if func not in CLASSES or not isinstance(target, torch.Tensor) or target.is_floating_point():
        return torch.ones_like(elements)
    counted = target.ne(given["ignore_index"])
    if given["weight"] is None:
        return counted.to(elements.dtype)
    of_classes: torch.Tensor = given["weight"]
    return of_classes[target.where(counted, 0)] * counted


class OwnLosses:
    """Function of (model, batch) that returns the losses of the samples of a batch, shape (batch,).

    One forward pass computes the loss of the whole batch, and the elements of torch's loss functions in it are recorded
    and averaged within each sample (over the tokens that count, if there are several).  At the first batch the result is
    compared with the loss of the batch, and with the loss of some samples alone.  If it does not agree, every sample gets
    a forward pass of its own, with a warning.

    Args:
        whole: the loss of a batch.
        recorded: the same loss by torch's loss functions, if ``whole`` computes it by other operations.
    """

    def __init__(self, whole: WholeLoss, recorded: WholeLoss | None = None) -> None:
        self.whole, self.recorded = whole, recorded or whole
        self._way: _Way | None = None
        self._factors: torch.Tensor | None = None

    def __call__(self, model: nn.Module, batch: Any) -> torch.Tensor:
        size = batches.length(batch)
        if self._way is None:
            self._way = self._choose(model, batch, size)
        return (self._way or self._one_by_one)(model, batch, size)

    def _choose(self, model: nn.Module, batch: Any, size: int) -> _Way | None:
        """Return a way to the samples' losses that agrees with the loss of the batch, and of samples alone.

        Losses that are not finite decide nothing: then it is ``None``.

        Raises:
            InputError: there is none.
        """
        device = next(
            (leaf.device.type for leaf in batches.leaves(batch) if isinstance(leaf, torch.Tensor)), "cpu"
        )
        with torch.autocast(device, enabled=False):
            whole = _number(self.whole(model, batch))
            checked = {size * i // CHECKED for i in range(CHECKED)} | {size - 1}
            alone = {i: _number(self.whole(model, _sample(batch, i, size))) for i in sorted(checked)}
            alone = {i: loss for i, loss in alone.items() if math.isfinite(loss)}  # without labels it is not
            if not alone or not math.isfinite(whole):
                return None
            parts = self._record(model, batch)
            coarse = any(parameter.dtype.itemsize < 4 for parameter in model.parameters())
            factors = _factors(parts, size, whole, alone, 2e-2 if coarse else 1e-3)
            if factors is not None:
                self._factors = factors
                return self._one_pass
            losses = self._one_by_one(model, batch, size)
        if not abs(float(losses.mean()) - whole) <= 0.5 * abs(whole):
            raise InputError(
                f"a loss of {whole:.4g} for a batch, and of {float(losses.mean()):.4g} on average for its samples alone",
                "a loss of the batch that is an average over its samples",
                "the loss compares the samples of a batch with each other, or its scale depends on the batch",
                "pass loss=, a function of (model, batch) that returns one loss per sample",
            )
        warn(
            f"loopwise.sift: the model's loss cannot be read sample by sample from one forward pass, so each of the "
            f"{size} samples of a pool is scored by a pass of its own, which takes longer; "
            "loss=, a function of (model, batch) that returns one loss per sample, avoids it"
        )
        return self._one_by_one

    def _record(self, model: nn.Module, batch: Any) -> list[_Part]:
        recorder = _RecordingMode()
        with recorder:
            self.recorded(model, batch)
        return recorder.parts

    def _one_pass(self, model: nn.Module, batch: Any, size: int) -> torch.Tensor:
        losses = _by_sample(self._record(model, batch), size)
        if losses is None or self._factors is None or losses.shape[1] != len(self._factors):
            return self._one_by_one(model, batch, size)
        return losses @ self._factors.to(losses)

    def _one_by_one(self, model: nn.Module, batch: Any, size: int) -> torch.Tensor:
        losses = [self.whole(model, _sample(batch, i, size)).detach().float() for i in range(size)]
        return torch.stack([loss.reshape(()) for loss in losses])


def _by_sample(parts: list[_Part], size: int, mean: bool = False) -> torch.Tensor | None:
    """Return the losses of the samples in each part, shape (size, parts).

    It is ``None`` if the elements of a part do not belong to samples in order.

    Args:
        parts: calls of loss functions.
        size: number of samples.
        mean: divide by the weights of the classes too, as the mean of a sample alone does.
    """
    if not parts or any((part.elements.shape or (1,))[0] % size for part in parts):
        return None
    columns = []
    for elements, weights, _ in parts:
        rows, weights = elements.float().reshape(size, -1), weights.float().reshape(size, -1)
        counted = weights if mean else (weights != 0).float()
        columns.append(rows.sum(1) / counted.sum(1).clamp_min(torch.finfo(torch.float32).tiny))
    return torch.stack(columns, 1)


def _factors(
    parts: list[_Part], size: int, whole: float, alone: dict[int, float], tolerance: float
) -> torch.Tensor | None:
    """Return factors of the parts, with which they add up to the loss of the batch and of some samples alone.

    They are 1 for a sum, 1 / n for a mean, or whatever solves the equations, of which there are more than parts.
    """
    rows = _by_sample(parts, size, mean=True)
    if rows is None:
        return None
    values = torch.stack([part.value.float() for part in parts])
    left = torch.cat([values[None], rows[list(alone)]]).double().cpu()
    right = torch.tensor([whole, *alone.values()], dtype=torch.float64)
    ones = torch.ones(len(parts), dtype=torch.float64)
    candidates = [ones, ones / len(parts)]
    if len(right) > len(parts):
        candidates.append(torch.linalg.lstsq(left, right, driver="gelsd").solution)
    for factors in candidates:
        if bool(((left @ factors - right).abs() <= tolerance * right.abs() + 1e-4).all()):
            return factors
    return None


def _sample(batch: Any, position: int, size: int) -> Any:
    return batches.index(batch, torch.tensor([position]), size)


def _number(loss: torch.Tensor) -> float:
    return float(loss.detach().float().mean())
