"""Doubts about the values that a loss gets: probabilities as logits, other scales, one class, too good a guess."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..rules import Finding, Observation
from ..rules.engine import make_finding
from .bounds import Bounds

F = nn.functional
SAMPLES = 16
"""Number of targets of one class that are not drawn by chance: the probability for two classes is 2 ** -15."""
SCALE = 100.0
"""Squared loss over that of the best constant guess: ten standard deviations of the targets."""
LOW = 0.5
"""Part of the way from the lowest loss to that of the best guess."""
NEAR = 1e-3
"""Difference of a sum of probabilities from 1, by rounding."""
NEAR_HALF = 0.1
"""The same for dtypes of 16 bits, whose log-probabilities are off by hundredths."""
LEAST = 8
"""Number of samples from which the spread of the targets is known."""


def doubts(
    func: Any, outputs: torch.Tensor, targets: torch.Tensor, value: float, bounds: Bounds | None
) -> list[Finding]:
    """Return findings about the outputs, the targets and the value of one loss of torch.

    Args:
        func: the function of ``torch.nn.functional``.
        outputs: its input.
        targets: its target.
        value: its mean.
        bounds: its bounds, if known.
    """
    seen: dict[str, Observation] = {}
    classes = outputs.shape[1] if outputs.ndim > 1 else 1
    if func is F.cross_entropy and classes > 1 and _sum_to_one(outputs):
        what = "cross_entropy applies softmax itself, but gets outputs that are probabilities already"
        seen["loss_input"] = Observation(what, ("loss",))
    if func is F.nll_loss and classes > 1 and not _sum_to_one(outputs.exp()):
        what = "nll_loss expects log-probabilities, but the exponentials of its outputs do not sum to 1"
        seen["loss_input"] = Observation(what, ("loss",))
    if func is F.kl_div and bool((outputs > NEAR).any()):
        what = "kl_div expects log-probabilities, but gets outputs above 0"
        seen["loss_input"] = Observation(what, ("loss",), advice="pass the outputs of log_softmax")
    indices = func in (F.cross_entropy, F.nll_loss) and targets.ndim == 1 and not targets.is_floating_point()
    if indices and len(targets) >= SAMPLES and bool((targets == targets[0]).all()):
        what = f"all {len(targets)} targets of the batch are of class {int(targets[0])}"
        seen["one_class_batch"] = Observation(what, ("target",))
    if bounds is not None and bounds.guess > bounds.floor:
        if func is F.mse_loss and len(targets) >= LEAST and value > SCALE * bounds.guess:
            seen["output_scale"] = _scale(outputs, targets, value, bounds)
        elif value - bounds.floor < LOW * (bounds.guess - bounds.floor):
            what = f"the loss begins at {value:.4g}; the best constant guess has {bounds.guess:.4g}"
            seen["low_initial_loss"] = Observation(what, ("loss",))
    return [make_finding(rule, observation, 0) for rule, observation in seen.items()]


def _sum_to_one(shares: torch.Tensor) -> bool:
    """Return whether these are probabilities over dimension 1."""
    if not bool(shares.isfinite().all()) or not bool((shares >= 0).all()):
        return False
    near = NEAR_HALF if shares.element_size() < 4 else NEAR
    return bool(((shares.double().sum(1) - 1).abs() < near).all())


def _scale(outputs: torch.Tensor, targets: torch.Tensor, value: float, bounds: Bounds) -> Observation:
    what = (
        f"outputs of mean {float(outputs.double().mean()):.4g} and size {_size(outputs):.4g} for targets of mean "
        f"{float(targets.double().mean()):.4g} and size {_size(targets):.4g}: the loss begins at {value:.4g}, "
        f"{value / bounds.guess:,.0f} times that of the best constant guess"
    )
    return Observation(what, ("loss",))


def _size(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())
