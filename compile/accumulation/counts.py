"""Counts of a batch: the number of targets that its loss is the mean of."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from loopwise.loss import is_pair

IGNORED = nn.CrossEntropyLoss().ignore_index
"""Label that torch's losses, and with them Hugging Face's models, leave out unless told otherwise."""
MOST_LOOKS = 100
"""Batches whose labels are looked at: on a GPU, each look waits for it."""
_CRITERIA = (nn.CrossEntropyLoss, nn.NLLLoss)
_FUNCTIONS = (functional.cross_entropy, functional.nll_loss)
_OPTIONS = {"weight", "ignore_index", "reduction", "label_smoothing"}


def found(loss: Any, batch: Any) -> Tensor | float | None:
    """Return the number that a loss divides its sum by on a batch, as far as it is known; else ``None``.

    It is known of ``nn.CrossEntropyLoss``, ``nn.NLLLoss`` and their functions with ``reduction="mean"``.  With class
    weights it is the sum of the weights of the targets that are not ignored.
    """
    criterion = _criterion(loss)
    if criterion is None or criterion.reduction != "mean":
        return None
    target = batch[1] if is_pair(batch) else None
    if not isinstance(target, Tensor):
        return None
    if (
        target.is_floating_point()
    ):  # probabilities: classes are the second dimension, or the first without a batch
        return target.numel() / max(1, target.shape[min(1, target.ndim - 1)])
    counted: Tensor = target != criterion.ignore_index
    if criterion.weight is None:
        return counted.sum()
    weights: Tensor = criterion.weight[target.where(counted, 0)]
    return (weights * counted).sum()


def _criterion(loss: Any) -> Any:
    """Return the criterion that ``loss`` is, or that does the same as the function ``loss``; else ``None``."""
    if isinstance(loss, nn.Module):
        of_torch = any(type(loss).forward is kind.forward for kind in _CRITERIA)
        return loss if of_torch and isinstance(loss, _CRITERIA) else None
    function, options = loss, {}
    if isinstance(loss, functools.partial) and not loss.args and set(loss.keywords) <= _OPTIONS:
        function, options = loss.func, loss.keywords
    kinds = zip(_FUNCTIONS, _CRITERIA, strict=True)
    return next((kind(**options) for known, kind in kinds if function is known), None)


class LabelMonitor:
    """Finds labels that are ignored in unequal numbers in the batches of an update, whose losses have no count.

    Only the first ``MOST_LOOKS`` batches are looked at.
    """

    def __init__(self) -> None:
        self._left = MOST_LOOKS
        self._window: list[tuple[int, int]] = []

    def add(self, batch: Any, first: bool) -> str:
        """Look at a batch, the ``first`` of an update or a later one; return what is wrong, or an empty text."""
        if not self._left:
            return ""
        self._left -= 1
        self._window = [] if first else self._window
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if is_pair(batch):
            labels = batch[1]
        if not isinstance(labels, Tensor) or labels.dtype not in (torch.int64, torch.int32):
            return ""
        self._window.append((int((labels != IGNORED).sum()), labels.numel()))
        counts = [count for count, _ in self._window]
        if min(counts) == max(counts) or all(count == size for count, size in self._window):
            return ""
        self._left = 0
        return (
            f"the batches of an update have {min(counts):,} to {max(counts):,} labels that are not {IGNORED}, but each "
            f"batch has the same weight: pass step(batch, count=n), or let the loss return (loss, n), with "
            f"n = (labels != {IGNORED}).sum(), or of labels[..., 1:] if the model shifts the labels by one, as causal "
            f"language models of transformers do"
        )
