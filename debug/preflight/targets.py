"""Checks of the outputs and targets that a loss gets, before torch fails on them or computes another loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..rules import Finding, Observation
from ..rules.engine import make_finding
from .bounds import Bounds, bounds_of_loss
from .values import doubts

F = nn.functional


class LossRefused(Exception):
    """A loss that is not computed because torch would fail, which on a GPU ends the process."""


class Targets(TorchFunctionMode):
    """Inspection of the arguments of torch's losses inside the ``with`` block.

    Attributes:
        findings: faults of the arguments.
        doubts: faults of the values, by which the loss is another one than it seems.
        calls: descriptions of the called losses and their arguments.
        bounds: bounds of the loss, if one loss of torch was called and its bounds are known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.findings: list[Finding] = []
        self.doubts: list[Finding] = []
        self.calls: list[str] = []
        self.bounds: Bounds | None = None
        self._value: torch.Tensor | None = None

    def bounds_of(self, loss: torch.Tensor) -> Bounds | None:
        """Return the bounds of the whole loss.

        They are ``None`` if the loss is more than torch's loss, such as a multiple of it, or if one constant predicts
        all targets of the batch.
        """
        if self._value is None or not math.isclose(self._value.item(), loss.item(), rel_tol=1e-5):
            return None
        if self.bounds is not None and math.isclose(self.bounds.guess, self.bounds.floor, abs_tol=1e-9):
            return None
        return self.bounds

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inspect_arguments = LOSSES.get(func)
        if inspect_arguments is None:
            return func(*args, **kwargs)
        arguments = inspect.signature(func).bind(*args, **kwargs)
        arguments.apply_defaults()
        options = arguments.arguments
        outputs, targets = options["input"], options["target"]
        self.calls.append(f"{func.__name__} of {_described(outputs)} and {_described(targets)}")
        wrong = inspect_arguments(outputs, targets, options)
        self.bounds = None
        if wrong is not None:
            seen = Observation(wrong[0], advice=wrong[1])
            self.findings.append(make_finding("bad_targets", seen, 0))
            if inspect_arguments is not _broadcast:
                raise LossRefused(wrong[0])
        elif len(self.calls) == 1:
            self.bounds = bounds_of_loss(func, outputs, targets, options)
        result = func(*args, **kwargs)
        self._value = result.detach().mean()
        if wrong is None:
            self.doubts += doubts(func, outputs.detach(), targets, self._value.item(), self.bounds)
        return result


Wrong = tuple[str, str]
"""The fault, and its fix."""


def _classes(outputs: torch.Tensor, targets: torch.Tensor, options: dict[str, Any]) -> Wrong | None:
    """Return the fault of the arguments of cross_entropy or nll_loss."""
    classes = outputs.shape[1 if outputs.ndim > 1 else 0] if outputs.ndim else 0
    wanted = outputs.shape[:1] + outputs.shape[2:] if outputs.ndim > 1 else torch.Size()
    if classes == 1:
        return (
            f"cross_entropy of one class, in outputs {tuple(outputs.shape)}, is always zero",
            "use binary_cross_entropy_with_logits for one output, or give the model one output for each class",
        )
    if targets.is_floating_point():
        if targets.shape == outputs.shape and "label_smoothing" in options:
            return None
        return (
            f"class indices of dtype {_dtype(targets)}, shape {tuple(targets.shape)}",
            "targets.long() for class indices; probabilities must have the shape of the outputs",
        )
    if targets.shape != wanted:
        return (
            f"targets {tuple(targets.shape)} for outputs {tuple(outputs.shape)}: their shape should be {tuple(wanted)}",
            _reshaped(outputs, targets, wanted),
        )
    if targets.dtype not in (torch.int64, torch.uint8):
        return f"class indices of dtype {_dtype(targets)}", "targets.long()"
    return _out_of_range(targets, classes, int(options.get("ignore_index", -100)))


def _out_of_range(targets: torch.Tensor, classes: int, ignored: int) -> Wrong | None:
    counted = targets[targets != ignored]
    if not counted.numel():
        return f"all targets are {ignored}, which the loss ignores", "look at how targets are masked"
    low, high = int(counted.min()), int(counted.max())
    if low >= 0 and high < classes:
        return None
    if low == 1 and high == classes:
        fix = "count classes from 0: targets - 1"
    elif low < 0:
        fix = f"mark targets to be ignored by {ignored}, or pass ignore_index={low}"
    else:
        fix = f"give the model {high + 1} outputs, or look for labels that are no classes"
    return f"class indices from {low} to {high}, but {classes} outputs", fix


def _reshaped(outputs: torch.Tensor, targets: torch.Tensor, wanted: torch.Size) -> str:
    if targets.shape == outputs.shape:
        return "targets.argmax(1) for one-hot targets, or targets.float() for probabilities"
    if targets.numel() == wanted.numel():
        return "targets.squeeze()"
    if outputs.ndim > 2 and targets.shape == outputs.shape[:-1]:
        return "classes belong into the second dimension: outputs.transpose(1, -1), or flatten both"
    return "one class index for each sample (and position), and outputs of shape (batch, classes, ...)"


def _binary(outputs: torch.Tensor, targets: torch.Tensor, _: dict[str, Any]) -> Wrong | None:
    """Return the fault of the arguments of binary_cross_entropy, with logits or without."""
    if outputs.shape != targets.shape:
        return (
            f"outputs {tuple(outputs.shape)} for targets {tuple(targets.shape)}",
            "bring both to one shape, with outputs.squeeze(-1) or targets.unsqueeze(-1)",
        )
    if not targets.is_floating_point():
        return f"targets of dtype {_dtype(targets)}", "targets.float()"
    low, high = targets.amin().item(), targets.amax().item()
    if not (low >= 0 and high <= 1):
        return f"targets from {low:g} to {high:g}, which are no probabilities", "targets must be from 0 to 1"
    return None


def _broadcast(outputs: torch.Tensor, targets: torch.Tensor, _: dict[str, Any]) -> Wrong | None:
    """Return the fault of the arguments of a loss that compares element by element."""
    try:
        size = math.prod(torch.broadcast_shapes(outputs.shape, targets.shape))  # type: ignore[no-untyped-call]
    except RuntimeError:  # the loss itself raises, with a good message
        return None
    if size <= max(outputs.numel(), targets.numel()):
        return None
    return (
        f"outputs {tuple(outputs.shape)} against targets {tuple(targets.shape)}: each is compared with all others",
        "bring both to one shape, with outputs.squeeze(-1) or targets.unsqueeze(-1)",
    )


LOSSES: dict[Any, Callable[[torch.Tensor, torch.Tensor, dict[str, Any]], Wrong | None]] = {
    F.cross_entropy: _classes,
    F.nll_loss: _classes,
    F.binary_cross_entropy: _binary,
    F.binary_cross_entropy_with_logits: _binary,
    F.kl_div: _broadcast,
    F.mse_loss: _broadcast,
    F.l1_loss: _broadcast,
    F.smooth_l1_loss: _broadcast,
    F.huber_loss: _broadcast,
}


def _described(value: Any) -> str:
    return (
        f"{_dtype(value)} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
    )


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
