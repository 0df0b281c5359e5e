"""Tensors that users save by hand for rules to look at, over the last saved steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .history import WINDOW, History

Arrays = tuple[NDArray[Any], ...]
Indices = NDArray[np.signedinteger[Any]]
SMALL = (np.int8, np.int16, np.int32)


def recent(
    history: History, *names: str, keep: Callable[..., Arrays | None] = lambda *arrays: arrays
) -> list[Arrays]:
    """Tensors of those names at the last saved steps that have them all, the present one last.

    To be called at each step, for only then its tensors can be read.

    Args:
        names: as ``Watch.save`` got them, saved raw.
        keep: what of a step's arrays is kept; ``None``: it tells nothing.

    Returns:
        One entry a step, of one array a name, floats of two bytes as float32; none where the present step lacks one
        of them or tells nothing.
    """
    present = [history.now.tensor(name) for name in names]
    if any(tensor is None for tensor in present):
        return []
    kept = memory(history, "/".join((history.now.mode, *names))).setdefault("steps", deque(maxlen=WINDOW))
    if not kept or kept[-1][0] != history.now.number:
        halves = (torch.bfloat16, torch.float16)
        found = [t.float() if t.dtype in halves else t for t in present if t is not None]
        arrays = keep(*(tensor.numpy() for tensor in found))
        if arrays is None:
            return []
        kept.append((history.now.number, arrays))
    return [arrays for _, arrays in kept]


def memory(history: History, name: str) -> dict[str, Any]:
    """What a rule wants to know at later steps; it comes from steps alone, so that judging again finds the same."""
    of_rules: dict[str, dict[str, Any]] = vars(history).setdefault("_memory", {})
    return of_rules.setdefault(name, {})


def classes(array: NDArray[Any]) -> Indices | None:
    """Class indices of labels or predictions, in as few bytes as will do.

    They are the numbers themselves, or where the second dimension has one number a class the place of the largest.
    ``None``: they are one float a sample, of which it is not known from where on it means the other class.
    """
    if array.ndim > 1 and array.shape[1] > 1 and (array.dtype.kind == "f" or _is_one_hot(array)):
        array = array.argmax(1)
    elif array.dtype.kind == "f" and not (array == np.trunc(array)).all():
        return None
    flat = array.reshape(-1)
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    fit = (kind for kind in SMALL if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return flat.astype(next(fit, np.int64))


def _is_one_hot(array: NDArray[Any]) -> bool:
    if array.ndim != 2 or not array.size:
        return False
    return bool(((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all())


def labels(history: History) -> list[Indices]:
    """Of each of the last saved steps, as class indices."""

    def keep(array: NDArray[Any]) -> Arrays | None:
        found = classes(array)
        return None if found is None else (found,)

    return [found for (found,) in recent(history, "labels", keep=keep)]


def labels_and_predictions(history: History) -> tuple[Indices, Indices]:
    """Of the last saved steps; labels below zero, which losses ignore, are left out."""

    def keep(*arrays: NDArray[Any]) -> Arrays | None:
        found, predicted = map(classes, arrays)
        if found is None or predicted is None or found.shape != predicted.shape:
            return None
        return found, predicted

    steps = recent(history, "labels", "predictions", keep=keep)
    if not steps:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    found, predicted = (np.concatenate(each) for each in zip(*steps, strict=True))
    counted = found >= 0
    return found[counted], predicted[counted]
