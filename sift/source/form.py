"""Form of a loader's batches: which of their lists hold one entry for each sample, and how many samples there are."""

from __future__ import annotations

import datetime
import enum
import pathlib
from typing import Any

import numpy as np
import torch

from loopwise import batch as batches
from loopwise.errors import InputError

_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), np.generic, enum.Enum, pathlib.PurePath)
CONSTANTS = (*_CONSTANTS, datetime.date, datetime.timedelta, torch.dtype, torch.device, slice, type)
"""Types of values that the samples of a batch may share."""


class Form:
    """Form of the batches of one loader, learned from the batches whose number of samples leaves one possibility.

    A list of n entries in a batch of n samples holds one entry for each sample, or it is a list of fields with n rows:
    three images of shape (3, height, width) look like three fields of three samples.  What an earlier batch showed, and
    lists beside this one, decide; otherwise the batch is refused.

    Args:
        stacked: the batches come from torch's ``default_collate``, which makes a list of samples only of strings.

    Attributes:
        lists: path of a list or tuple, such as ``/0/boxes`` -> whether it holds one entry for each sample.
    """

    def __init__(self, stacked: bool = False) -> None:
        self.stacked = stacked
        self.lists: dict[str, bool] = {}

    def length(self, batch: Any, hint: int | None) -> int:
        """Return the number of samples in a batch; ``hint`` is the number that most batches have."""
        for path, per_sample in self.lists.items():
            if per_sample and (node := _at(batch, path)) is not None:
                return len(node)
        return batches.length(batch, hint)

    def learn(self, batch: Any, size: int) -> None:
        """Learn the form of a batch of ``size`` samples, which is to be cut and joined with others.

        Raises:
            InputError: fields of another length, objects of an unknown type, or more than one possible form.
        """
        for path in self._doubtful(batch, size, ""):
            raise InputError(
                f"a batch of {size} samples with {batches.describe(_at(batch, path))}{_place(path)}",
                "lists of another length than the number of samples, or of entries with another number of rows",
                f"it may be a list of {size} samples, or of {size} fields with {size} rows each",
                "stack the entries in the collate_fn if they are samples of one shape, return the fields as a dict or "
                "(outermost) as a tuple, or use another batch_size",
            )

    def agrees(self, batch: Any, size: int) -> bool:
        """Return whether some field of a batch has ``size`` samples, or nothing in it tells their number."""
        if isinstance(batch, (tuple, list)) and any(_has_rows(part, size) for part in batch):
            return True  # the usual batch, without looking at all of it
        counts = _counts(batch)
        return size in counts or not counts

    def _doubtful(self, node: Any, size: int, path: str) -> list[str]:
        """Learn the form of a part of a batch, and return the paths of the lists that may be both."""
        children = batches.children(node)
        if children is None:
            _validate_leaf(node, size, path)
            return []
        if batches.is_plain_sequence(node):
            if path not in self.lists:
                decision = self._decide(node, size, path)
                if decision is None:
                    return [path]
                self.lists[path] = decision
            if self.lists[path]:
                _validate_count(len(node), node, size, path)
                return []
        parts = {f"{path}/{name}": child for name, child in children.items()}
        doubtful = [inner for name, child in parts.items() for inner in self._doubtful(child, size, name)]
        if doubtful and any(
            self.lists.get(name, False) and not _is_constant(child) for name, child in parts.items()
        ):
            self.lists |= {name: True for name in doubtful if name in parts}  # as the list beside it
            doubtful = [name for name in doubtful if name not in parts]
        return doubtful

    def _decide(self, node: Any, size: int, path: str) -> bool | None:
        """Return whether a list holds one entry for each sample; ``None`` if it may as well hold fields."""
        samples, fields = len(node) == size, size in (_common(node) or ())
        if not (samples and fields):
            return samples
        if self.stacked or (not path and (type(node) is tuple or len({_kind(child) for child in node}) > 1)):
            return False
        return True if batches.holds_samples(node) else None


def _has_rows(node: Any, size: int) -> bool:
    return isinstance(node, torch.Tensor) and node.ndim > 0 and node.shape[0] == size


def _is_list_of_constants(node: Any) -> bool:
    """Return whether a list holds only numbers and strings; looking at thousands of tokens one by one would take long."""
    return batches.is_plain_sequence(node) and set(map(type, node)) <= {int, float, bool, str, bytes}


def _is_constant(node: Any) -> bool:
    return not any(isinstance(leaf, (torch.Tensor, np.ndarray)) for leaf in batches.leaves(node))


def _kind(node: Any) -> Any:
    if isinstance(node, (torch.Tensor, np.ndarray)):
        return type(node), tuple(node.shape), node.dtype
    return type(node), tuple(batches.children(node) or ())


def _possible(node: Any) -> set[int] | None:
    """Return the numbers of samples that a part of a batch may have; ``None`` for a constant."""
    if isinstance(count := getattr(node, "num_graphs", None), int):  # without unpacking them
        return {count}
    if (packed := batches.unpacked(node)) is not None:
        return {len(packed[0])}
    if isinstance(node, (torch.Tensor, np.ndarray)):
        return {node.shape[0]} if node.ndim else None
    if _is_list_of_constants(node):
        return {len(node)}
    if batches.children(node) is None:
        return None
    common = _common(node)
    return (common or set()) | {len(node)} if batches.is_plain_sequence(node) else common


def _common(node: Any) -> set[int] | None:
    """Return the numbers of samples that all children of a container may have; ``None`` if all are constants."""
    sets = [s for child in (batches.children(node) or {}).values() if (s := _possible(child)) is not None]
    return set.intersection(*sets) if sets else None


def _counts(node: Any) -> set[int]:
    """Return the numbers of samples that any part of a batch may have."""
    parts = () if _is_list_of_constants(node) else (batches.children(node) or {}).values()
    return (_possible(node) or set()).union(*map(_counts, parts))


def _at(batch: Any, path: str) -> Any:
    """Return the part of a batch at a path; ``None`` if there is none."""
    for name in path.split("/")[1:]:
        batch = (batches.children(batch) or {}).get(name)
    return batch


def _validate_leaf(node: Any, size: int, path: str) -> None:
    counts = _possible(node)
    if counts:
        _validate_count(min(counts), node, size, path)
    elif not isinstance(node, (*CONSTANTS, torch.Tensor, np.ndarray)) and not callable(node):
        raise InputError(
            f"a batch with an object of type {type(node).__name__}{_place(path)}",
            "tensors, arrays, containers of them, lists with one entry for each sample, or an object with to_data_list() "
            "and from_data_list() of its class",
            "a batch of graphs, or of another library, which cannot be cut into samples",
            "let the collate_fn return a list of samples and join them in the loop, or use score_every=0 with losses from "
            "the training step, for which no batch is cut",
        )


def _validate_count(count: int, node: Any, size: int, path: str) -> None:
    if count != size:
        raise InputError(
            f"a batch of {size} samples with {count} rows in {batches.describe(node)}{_place(path)}",
            "fields with one row for each sample",
            "a collate_fn that joins fields of different samples, leaves samples out, or puts the batch in another "
            "dimension",
            "make every field's first dimension the batch, or put the rows of each sample into a list",
        )


def _place(path: str) -> str:
    return f" at {path}" if path else ""
