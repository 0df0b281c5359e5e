"""Tensors that users save by hand for rules to look at, over the last saved steps."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .history import WINDOW, History

Arrays = tuple[NDArray[Any], ...]


def recent(history: History, *names: str) -> list[Arrays]:
    """Tensors of those names at the last saved steps that have them all, the present one last.

    To be called at each step, for only then its tensors can be read.

    Args:
        names: as ``Watch.save`` got them, saved raw.

    Returns:
        One entry a step, of one array a name, floats as float64; none where the present step lacks one of them.
    """
    present = [history.now.tensor(name) for name in names]
    if any(tensor is None for tensor in present):
        return []
    kept = memory(history, "/".join((history.now.mode, *names))).setdefault("steps", deque(maxlen=WINDOW))
    if not kept or kept[-1][0] != history.now.number:
        found = [t.double() if t.is_floating_point() else t for t in present if t is not None]
        kept.append((history.now.number, tuple(tensor.numpy() for tensor in found)))
    return [arrays for _, arrays in kept]


def memory(history: History, name: str) -> dict[str, Any]:
    """What a rule wants to know at later steps; it comes from steps alone, so that judging again finds the same."""
    of_rules: dict[str, dict[str, Any]] = vars(history).setdefault("_memory", {})
    return of_rules.setdefault(name, {})


def classes(array: NDArray[Any]) -> NDArray[np.int64]:
    """Class indices of labels or predictions: themselves, or the largest of the second dimension's elements."""
    if array.ndim > 1 and array.dtype.kind == "f":
        array = array.argmax(1)
    return array.reshape(-1).astype(np.int64)


def labels_and_predictions(history: History) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of the last saved steps; labels below zero, which losses ignore, are left out."""
    steps = [tuple(map(classes, arrays)) for arrays in recent(history, "labels", "predictions")]
    steps = [pair for pair in steps if pair[0].shape == pair[1].shape]
    if not steps:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    labels, predictions = (np.concatenate(each) for each in zip(*steps, strict=True))
    counted = labels >= 0
    return labels[counted], predictions[counted]
