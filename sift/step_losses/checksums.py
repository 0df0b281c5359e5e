"""Recognise a batch by a checksum of each of its rows, without waiting for an accelerator."""

from __future__ import annotations

import weakref
from functools import lru_cache
from typing import Any

import torch

from loopwise import batch as batches
from loopwise.torch_internals import version

COLUMNS = 1024
"""Most elements of a row that its checksum covers, evenly spaced over the row."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def rows(value: Any, size: int) -> list[torch.Tensor]:
    """Return the tensors in ``value`` that have one row for each of ``size`` samples, in order."""
    leaves = (leaf for leaf in batches.leaves(value) if isinstance(leaf, torch.Tensor))
    return [leaf for leaf in leaves if leaf.ndim and leaf.shape[0] == size and not leaf.is_nested]


def sampled(tensor: torch.Tensor) -> torch.Tensor:
    """Return at most about ``COLUMNS`` elements of each row, evenly spaced: shape (rows, elements), a copy.

    The order of the elements is that of the flattened row, so that ``x`` and ``x.flatten(1)`` have the same ones.
    """
    tensor = tensor.detach()
    step = max(1, tensor[:1].numel() // COLUMNS)
    step = step | 1 if step > 1 else 1
    if step > 1 and not tensor.is_contiguous():  # channels_last: reshaping would copy all of it
        places = _places(tensor.shape[1:], step, str(tensor.device))
        return tensor[(slice(None), *places)]
    return tensor.reshape(tensor.shape[0], -1)[:, ::step].clone()


@lru_cache(maxsize=64)
def _places(shape: torch.Size, step: int, device: str) -> tuple[Any, ...]:
    """Return the indices of every ``step``-th element of a row of this shape, one tensor for each dimension."""
    return torch.unravel_index(torch.arange(0, shape.numel(), step, device=device), shape)


def checksums(elements: torch.Tensor) -> torch.Tensor:
    """Return a checksum of each row of ``sampled`` elements: int64 of shape (rows,), on their device.

    Each element's bits are multiplied by a random weight of its column, and the products are added modulo 2**64.
    """
    if elements.is_complex():
        elements = torch.view_as_real(elements).flatten(1)
    if elements.is_floating_point():
        elements = elements.float() if elements.element_size() == 1 else elements
        elements = elements.view(_INTEGERS[elements.element_size()])
    weights = _weights(elements.shape[1], str(elements.device))
    return (elements.to(torch.int64) * weights).sum(1)


@lru_cache(maxsize=64)
def _weights(columns: int, device: str) -> torch.Tensor:
    draws = torch.Generator().manual_seed(columns)  # the user's random state is not touched
    return torch.randint(-(2**62), 2**62, (columns,), generator=draws).mul_(2).add_(1).to(device)


class Fingerprint:
    """Elements of a batch's input, by which a later forward pass of the same input is recognised.

    Args:
        value: the input: a tensor, or a nest of them.
        size: number of samples.
        copied: hold elements; otherwise only the very tensors of the input are recognised.
    """

    def __init__(self, value: Any, size: int, copied: bool = True) -> None:
        self.size, self.copied = size, copied
        tensors = rows(value, size)
        self._elements = [sampled(tensor) for tensor in tensors] if copied else []
        self._tensors = [(weakref.ref(tensor), _version(tensor)) for tensor in tensors]

    def __bool__(self) -> bool:
        return bool(self._tensors)

    def equals(self, value: Any) -> torch.Tensor | None:
        """Return whether ``value`` holds the same rows in the same order: bool, 0-dimensional, on the device of ``value``.

        Another dtype, a flattened or reshaped row, and another device count as the same, and so do further tensors
        after those of the input.  ``None``: too few tensors, rows of another length, or no elements, so that no values
        are compared.
        """
        others = rows(value, self.size)
        if len(others) < len(self._elements):
            return None
        same: torch.Tensor | None = None
        for expected, other in zip(self._elements, others, strict=False):
            if (sums := _sums(expected, other)) is None:
                return None
            equal = (sums[0] == sums[1]).all()
            same = equal if same is None else same & equal
        return same

    def is_unchanged(self, value: Any) -> bool:
        """Return whether ``value`` holds the very tensors of the input, to which torch has not written since."""
        others = rows(value, self.size)
        return len(others) >= len(self._tensors) > 0 and all(
            tensor() is other and writes is not None and _version(other) == writes
            for (tensor, writes), other in zip(self._tensors, others, strict=False)
        )

    def permuted(self, value: torch.Tensor) -> torch.Tensor | None:
        """Return whether ``value`` holds the rows of the batch's one tensor in another order: bool, 0-dimensional.

        ``None``: rows of another length.
        """
        (expected,) = self._elements
        if (sums := _sums(expected, value)) is None:
            return None
        wanted, found = sums
        return (wanted != found).any() & (wanted.sort().values == found.sort().values).all()


def _version(tensor: torch.Tensor) -> int | None:
    """Return how often torch has written to a tensor; ``None``: it does not count that."""
    return None if tensor.is_inference() else version(tensor)


def _sums(expected: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the checksums of sampled elements and of another tensor's, on its device; ``None``: rows of another length."""
    elements = sampled(other)
    if elements.shape != expected.shape:
        return None
    wanted = checksums(expected.to(elements.dtype))  # a few bytes
    return wanted.to(elements.device, non_blocking=True), checksums(elements)
