"""Updates by optimizers that compute losses and gradients themselves, through a closure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..spec import StepSpec


def train_by_closure(spec: StepSpec, forward: Callable[[Any, int], Any], batch: Any, number: int) -> Any:
    """Let the optimizer make an update on a batch, and return its first forward pass.

    Args:
        spec: the training step.
        forward: takes the batch and its number, and returns a pass with its ``loss``.
        batch: the batch.
        number: number of the batch.
    """
    passes = []

    def closure() -> torch.Tensor:
        spec.wrapper.zero_grad()
        with torch.enable_grad():
            result = forward(batch, number)
            spec.backward(result.loss)
        passes.append(result)
        return result.loss.detach()  # type: ignore[no-any-return]

    spec.wrapper.step(closure)
    spec.wrapper.zero_grad()
    return passes[0]
