"""Bounds of the losses of torch by their targets: the lowest value, and that of the best constant guess."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

F = nn.functional


class Bounds(NamedTuple):
    """Values that the loss of the batch can reach."""

    floor: float
    """Loss if every target is predicted."""
    guess: float
    """Loss of the best guess that is the same for all inputs."""


def _class_bounds(targets: torch.Tensor, classes: int, options: dict[str, Any]) -> Bounds | None:
    """Return the bounds of cross_entropy by the shares of the classes; ``None`` if the classes are weighted."""
    if options.get("weight") is not None:
        return None
    smoothing = options["label_smoothing"]
    spread = smoothing / classes
    if targets.is_floating_point():
        shares = targets.movedim(1, -1).reshape(-1, classes) if targets.ndim > 1 else targets[None]
        shares = shares.double() * (1 - smoothing) + spread
        return Bounds(_entropy(shares).mean().item(), _entropy(shares.mean(0)).item())
    counts = targets[targets != options["ignore_index"]].long().bincount(minlength=classes).double()
    smooth = torch.full((classes,), spread, dtype=torch.float64)
    single = smooth.clone()
    single[0] += 1 - smoothing
    mean = counts.cpu() / counts.sum().cpu() * (1 - smoothing) + smooth
    return Bounds(_entropy(single).item(), _entropy(mean).item())


def bounds_of_loss(
    func: Any, outputs: torch.Tensor, targets: torch.Tensor, options: dict[str, Any]
) -> Bounds | None:
    """Return the bounds of a loss that is the mean over the batch, if they are known."""
    if options.get("reduction") == "sum":
        return None
    if func is F.cross_entropy:
        return _class_bounds(targets, outputs.shape[1 if outputs.ndim > 1 else 0], options)
    if outputs.shape != targets.shape or options.get("weight") is not None:
        return None
    known = targets.detach().double()
    if func is F.mse_loss:
        return Bounds(0.0, (known - known.mean(0)).square().mean().item())
    is_binary = func in (F.binary_cross_entropy, F.binary_cross_entropy_with_logits)
    if is_binary and options.get("pos_weight") is None:
        shares = torch.stack([known, 1 - known], -1)
        return Bounds(_entropy(shares).mean().item(), _entropy(shares.mean(0)).mean().item())
    return None


def _entropy(shares: torch.Tensor) -> torch.Tensor:
    """Return the entropy over the last dimension."""
    entropies: torch.Tensor = torch.special.entr(shares).sum(-1)
    return entropies
