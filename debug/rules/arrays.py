"""Tensors that users save by hand for rules, over the last saved steps."""

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
    """Return the tensors of these names at the last saved steps that have them all, the present step last.

    The function must be called at each step, because the tensors of earlier steps cannot be read.

    Args:
        history: the history of the run.
        names: names that ``Watch.save`` was called with; the tensors are saved raw.
        keep: function from a step's arrays to the arrays that are kept, or ``None`` to ignore the step.

    Returns:
        For each step one array for each name, with floats of two bytes as float32; empty if the present step lacks a
        tensor or ``keep`` returns ``None``.
    """
    present = [history.now.tensor(name) for name in names]
    if any(tensor is None for tensor in present):
        return []
    kept = memory(history, "/".join((history.now.mode, *names))).setdefault("steps", deque(maxlen=WINDOW))
    if not kept or kept[-1][0] != history.now.number:
        halves = (torch.bfloat16, torch.float16)
        tensors = [t.float() if t.dtype in halves else t for t in present if t is not None]
        arrays = keep(*(tensor.numpy() for tensor in tensors))
        if arrays is None:
            return []
        kept.append((history.now.number, arrays))
    return [arrays for _, arrays in kept]


def memory(history: History, name: str) -> dict[str, Any]:
    """Return a dict that a rule keeps between steps; it must depend on steps only, so that findings can be repeated."""
    of_rules: dict[str, dict[str, Any]] = vars(history).setdefault("_memory", {})
    return of_rules.setdefault(name, {})


def classes(array: NDArray[Any]) -> Indices | None:
    """Return the class indices of labels or predictions, in the smallest integer dtype.

    The indices are the numbers themselves, or the places of the largest numbers if the second dimension has one number
    for each class.

    Returns:
        The indices; ``None`` if there is one float for each sample, because its threshold between classes is unknown.
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


def class_indices(history: History, *names: str) -> list[Indices]:
    """Return the class indices of these tensors over the last saved steps, joined.

    Samples whose index in the first tensor is below zero are left out, because losses ignore them.

    Args:
        history: the history of the run.
        names: names of tensors that have one class for each sample; the labels come first.

    Returns:
        For each name one array, all of the same length; empty arrays if the present step lacks a tensor.
    """

    def keep(*arrays: NDArray[Any]) -> Arrays | None:
        indices = [array for array in map(classes, arrays) if array is not None]
        fit = len(indices) == len(arrays) and len({array.shape for array in indices}) == 1
        return tuple(indices) if fit else None

    steps = recent(history, *names, keep=keep) or [(np.empty(0, np.int64),) * len(names)]
    joined = [np.concatenate(arrays) for arrays in zip(*steps, strict=True)]
    return [array[joined[0] >= 0] for array in joined]
