"""Keep the samples with the highest reducible loss: those that the model can still learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from loopwise.errors import InputError

from .policy import Policy, Pool, check_keep, top


class ReducibleLoss(Policy):
    """Keep the share ``keep`` of each pool with the highest loss above that of a reference model.

    The rule is RHO-LOSS (Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and Not
    Yet Learnt", ICML 2022).  A model that was trained on held-out data tells the loss that remains once a sample is
    learned.  That loss is high for noise and wrong labels, so these are not kept, however high their own loss is.
    Changed here: fractions of a sample are carried to the next pool, as in ``TopLoss``.  The paper keeps one of 10
    batches: pass ``pool=10`` to the loader for that.

    Args:
        reference: the trained reference model, on the device of the model in training; it is frozen in place
            (evaluation mode, no gradients) and scores every pool.  Or the irreducible losses themselves, finite, of
            shape (samples,), by index in the dataset: those cost nothing during training, but ignore augmentation.
        keep: share of samples to keep, a fraction in (0, 1].
    """

    reaches_all = False
    state = ("_carried",)

    def __init__(self, reference: nn.Module | torch.Tensor | np.ndarray[Any, Any], keep: float = 0.1) -> None:
        self.keep = check_keep(keep)
        self.reference = reference if isinstance(reference, nn.Module) else _table(reference)
        if isinstance(self.reference, nn.Module):
            self.reference.requires_grad_(False).eval()
        self._carried = 0.0

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it depends on the reference
        """``losses_of`` with a reference model, ``indices`` with losses."""
        return frozenset({"losses_of" if isinstance(self.reference, nn.Module) else "indices"})

    def probabilities(self, pool: Pool) -> torch.Tensor:
        reducible = pool.losses - self._irreducible(pool)
        probabilities, self._carried = top(self.keep, reducible, self._carried)
        return probabilities

    def _irreducible(self, pool: Pool) -> torch.Tensor:
        if isinstance(self.reference, nn.Module):
            assert pool.losses_of is not None
            return pool.losses_of(self.reference)
        assert pool.indices is not None
        if len(pool) and int(pool.indices.max()) >= len(self.reference):
            raise InputError(
                f"a sample of index {int(pool.indices.max())}, with {len(self.reference)} irreducible losses",
                "one irreducible loss for every sample of the dataset, by its index",
                "the reference scored another dataset, or only a part of it",
                "score the whole training dataset with the reference, in order (shuffle=False)",
            )
        return self.reference[pool.indices]

    def __repr__(self) -> str:
        known = isinstance(self.reference, nn.Module)
        name = type(self.reference).__name__ if known else f"{len(self.reference)} losses"  # type: ignore[arg-type]
        return f"ReducibleLoss(reference={name}, keep={self.keep:g})"


def _table(losses: object) -> torch.Tensor:
    """Return irreducible losses as float32 of shape (samples,)."""
    seen = type(losses).__name__
    if isinstance(losses, (torch.Tensor, np.ndarray)):
        seen = f"{seen} of shape {tuple(losses.shape)}"
        if losses.ndim == 1:
            table = torch.asarray(losses, dtype=torch.float32, device="cpu", copy=True).detach()
            not_finite = int((~table.isfinite()).sum())
            if not not_finite:
                return table
            seen += f" with {not_finite} values that are not finite"
    raise InputError(
        f"reference: {seen}",
        "a reference model (nn.Module), or finite losses of shape (samples,) as a Tensor or array",
        "a function or a file name, one loss per batch instead of per sample, or samples that were not scored",
        "pass the model that was trained on held-out data, or its losses by index in the dataset",
    )
