"""Places that hold state: their contents can be saved, compared with what was saved, and restored.

A place is a tensor, an array, a random generator, or a container: the attributes of an object, a dict, a list, a set, a
deque, the variable of a closure, or the variables of a module that a function uses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from loopwise import batch as batches
from loopwise.torch_internals import version

GONE = "deleted"
"""Value of a key that a pass deleted."""
SIMPLE = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size)


class Place(Protocol):
    """A place that holds state."""

    name: str

    def save(self) -> Any:
        """Return the contents."""

    def changes(self, saved: Any) -> dict[str, Any]:
        """Return what differs from ``saved``, by name, with its present value."""

    def restore(self, saved: Any) -> None:
        """Put ``saved`` back, in place."""


class TensorPlace:
    """A tensor: its values, its storage, and whether it needs a gradient.

    Args:
        name: path to the tensor.
        tensor: the tensor.
        copied: whether its values may be copied; otherwise only its version and its address are compared.
    """

    def __init__(self, name: str, tensor: Tensor, copied: bool = True) -> None:
        self.name, self.tensor, self.copied = name, tensor, copied
        self.base: Tensor | None = None
        """Copy of the values, in the memory of the CPU, which ``restore`` uses if a save without values is not enough."""

    def save(self, values: bool = True) -> Any:
        """Return the tensor's storage, version, need of a gradient, and a copy of its ``values``, or ``None``."""
        data = self.tensor.data
        copied = data.detach().clone() if values and self.copied else None
        return data, _version(self.tensor), self.tensor.requires_grad, copied

    def holds(self, saved: Any) -> bool:
        """Return whether the tensor still has the data and the need of a gradient that were saved with its values."""
        data, _, needs, values = saved
        tensor = self.tensor
        if values is None or values.layout != torch.strided or tensor.requires_grad != needs:
            return False
        return bool(tensor.data_ptr() == data.data_ptr() and tensor.shape == values.shape)

    def keep_base(self) -> None:
        """Keep a copy of the present values."""
        self.base = self.tensor.data.to("cpu", copy=True) if self.copied else None

    def changes(self, saved: Any) -> dict[str, Any]:
        """Return the tensor if it has other values."""
        data, before, needs, values = saved
        if values is None:
            same = _version(self.tensor) == before and _address(self.tensor) == _address(data)
        else:
            same = _equal(self.tensor.data, values)
        return {} if same and self.tensor.requires_grad == needs else {self.name: self.tensor}

    def changes_from_base(self, saved: Any) -> dict[str, Any]:
        """Return the tensor if it has other values than those that ``keep_base`` kept."""
        same = _equal(self.tensor.data.cpu(), self.base) and self.tensor.requires_grad == saved[2]
        return {} if same else {self.name: self.tensor}

    def restore(self, saved: Any, from_base: bool = False) -> None:
        """Restore storage, values and the need of a gradient; the version that autograd compares stays."""
        data, before, needs, values = saved
        unseen = values is None and (from_base or _version(self.tensor) != before)
        if self.tensor.dtype != data.dtype or _address(self.tensor) != _address(data):
            self.tensor.data = data
        values = self.base if unseen else values
        if values is not None and (unseen or not _equal(data, values)):
            data.copy_(values)
        if self.tensor.requires_grad != needs:
            self.tensor.requires_grad_(needs)


class ValuePlace:
    """An object whose state a pair of functions reads and writes, such as a random generator or an array.

    Args:
        name: path to the object.
        get: returns a copy of the state.
        put: restores such a copy.
    """

    def __init__(self, name: str, get: Callable[[], Any], put: Callable[[Any], None]) -> None:
        self.name, self.save, self.restore = name, get, put

    def changes(self, saved: Any) -> dict[str, Any]:
        """Return the state if it differs."""
        now = self.save()
        return {} if _equal(now, saved) else {self.name: now}


class SequencePlace:
    """A list, a set or a deque.

    Args:
        name: path to it.
        owner: the object.
    """

    def __init__(self, name: str, owner: Any) -> None:
        self.name, self._owner = name, owner

    def save(self) -> Any:
        """Return a copy."""
        return copy.copy(self._owner) if type(self._owner) in (list, set) else list(self._owner)

    def changes(self, saved: Any) -> dict[str, Any]:
        """Return the elements that are new or others, or the length if that changed."""
        now = self.save()
        if len(now) != len(saved):
            return {f"{self.name} (length)": len(now)} | dict(_entries(self.name, now, len(saved)))
        if isinstance(saved, set):
            return {} if now == saved else {self.name: len(now - saved)}
        pairs = enumerate(zip(now, saved, strict=True))
        return {f"{self.name}[{n}]": value for n, (value, before) in pairs if not same(value, before)}

    def restore(self, saved: Any) -> None:
        """Restore the elements."""
        now = self.save()
        changed = len(now) != len(saved)
        if isinstance(saved, set):
            changed = now != saved
        elif not changed:
            changed = any(a is not b for a, b in zip(now, saved, strict=True))
        if changed:
            self._owner.clear()
            (self._owner.update if isinstance(self._owner, set) else self._owner.extend)(saved)

    def substitute(self, twins: dict[int, Tensor]) -> None:
        """Replace tensors in a list by their twins, which are given by the tensors' identities."""
        if isinstance(self._owner, list) and any(id(value) in twins for value in self._owner):
            self._owner[:] = [twins.get(id(value), value) for value in self._owner]


def _entries(name: str, values: Any, start: int) -> Iterator[tuple[str, Any]]:
    """Yield the elements of a list from ``start`` on by name."""
    if isinstance(values, list):
        yield from ((f"{name}[{n}]", value) for n, value in enumerate(values) if n >= start)


def as_tensors(name: str, value: Any) -> dict[str, Tensor]:
    """Return a changed value as tensors that can be compared: tensors as copies, numbers, and digests of anything else."""
    leaves = batches.leaves(value) if isinstance(value, (list, tuple, dict)) else [value]
    tensors = {}
    for number, leaf in enumerate(leaves):
        label = name if len(leaves) == 1 else f"{name}[{number}]"
        if isinstance(leaf, Tensor):
            tensors[label] = leaf.detach().clone()
        elif isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub":
            tensors[label] = torch.from_numpy(leaf.copy())
        elif isinstance(leaf, (bool, int, float, np.number)) and abs(float(leaf)) < 2**53:
            tensors[label] = torch.tensor(float(leaf), dtype=torch.float64)
        elif isinstance(leaf, SIMPLE):
            tensors[label] = torch.tensor(hash(leaf))
        else:
            tensors[label] = torch.tensor(hash(type(leaf).__qualname__))
    return tensors


def same(value: Any, before: Any) -> bool:
    """Return whether a value is the same object, or an equal number or text."""
    if value is before:
        return True
    if type(value) is not type(before):
        return False
    if isinstance(value, SIMPLE):
        return bool(value == before) or (
            isinstance(value, float) and math.isnan(value) and math.isnan(before)
        )
    if isinstance(value, tuple):
        return len(value) == len(before) and all(map(same, value, before))
    # bound methods are made anew at each access; they belong to the same object
    return hasattr(value, "__func__") and bool(value == before)


def _equal(value: Any, saved: Any) -> bool:
    """Return whether tensors, arrays or nests of numbers are equal to the bit, NaNs at the same places included."""
    if isinstance(value, Tensor):
        if value.shape != saved.shape or value.dtype != saved.dtype:
            return False
        if value.layout != torch.strided:
            value, saved = value.to_dense(), saved.to_dense()
        return torch.equal(value, saved) or bool(((value == saved) | (value.isnan() & saved.isnan())).all())
    if isinstance(value, np.ndarray):
        return value.dtype == saved.dtype and np.array_equal(value, saved, equal_nan=value.dtype.kind in "fc")
    if isinstance(value, dict):
        return value.keys() == saved.keys() and all(_equal(value[key], saved[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(saved) and all(map(_equal, value, saved))
    return bool(value == saved)


def _version(tensor: Tensor) -> int:
    """Return a counter of the changes in place; 0 for an inference tensor, which has none."""
    return 0 if tensor.is_inference() else version(tensor)


def _address(tensor: Tensor) -> Any:
    """Return the address of a tensor's data; the identity of its storage is not enough for views."""
    if tensor.is_nested:
        return None  # its version tells whether it changed
    return tensor.data_ptr() if tensor.layout == torch.strided else id(tensor)
