"""What a policy is, and the check of the ``keep`` share that all of them take."""

from __future__ import annotations

from typing import Protocol

import torch

from loopwise.errors import InputError


class Policy(Protocol):
    """A callable from losses to keep probabilities; a plain function will do.

    It is called once a pool with the finite per-sample losses, float32 of shape ``(samples,)`` on
    the CPU, in the order in which the loader gave the samples, and returns the probability in
    [0, 1] that each is kept, of the same shape.
    """

    def __call__(self, losses: torch.Tensor, /) -> torch.Tensor: ...


def check_keep(keep: float) -> float:
    """``keep`` as a float in (0, 1], or an error that says what it should be."""
    if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
        raise InputError(
            f"keep={keep!r}",
            "the share of samples to train on, a number in (0, 1]",
            "a percentage instead of a fraction, or 0 for 'keep nothing'",
            "pass a fraction, for instance keep=0.5",
        )
    return float(keep)
