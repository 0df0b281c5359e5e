"""Operations on batches of any structure: length, selection, joining, splitting, size in memory.

A batch is a nest of tuples, lists, dicts (and other mappings, such as Hugging Face's
``BatchEncoding``), namedtuples and dataclasses.  Its leaves are tensors and arrays whose first
dimension is the batch, lists with one entry for each sample (strings, ragged tensors, dicts), packed
fields (``PackedSequence``, nested tensors, batches of PyTorch Geometric), and constants (numbers, strings,
``None``, 0-dimensional tensors), which all samples share.

A list may be one of fields or one of samples.  Where its form does not tell, a caller that knows passes ``lists``: the
path of a list, such as ``/0/boxes``, and whether it holds one entry for each sample.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from loopwise.errors import InputError

Lists = Mapping[str, bool]
"""Path of a list or tuple -> whether it holds one entry for each sample."""
_Rebuild = Callable[[list[Any]], Any]


def _open(node: Any) -> tuple[list[Any], _Rebuild] | None:
    """Return a container's children and a function from new ones to such a container; ``None`` for a leaf."""
    if type(node) is dict:
        return list(node.values()), lambda values: dict(zip(node, values, strict=True))
    if isinstance(node, (list, tuple)):
        if hasattr(node, "_fields"):
            return list(node), lambda values: type(node)(*values)
        return list(node), type(node)
    if isinstance(node, Mapping):  # among them UserDict and subclasses of dict
        keys = list(node)
        return [node[key] for key in keys], lambda values: _refill(node, keys, values)
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        names = [field.name for field in dataclasses.fields(node)]
        return [getattr(node, name) for name in names], lambda values: _with_fields(node, names, values)
    return None


def children(node: Any) -> dict[str, Any] | None:
    """Return the children of a container by their names in paths; ``None`` for a leaf."""
    opened = None if _is_array(node) or unpacked(node) is not None else _open(node)
    if opened is None:
        return None
    names = node if isinstance(node, Mapping) else range(len(opened[0]))
    return {str(name): child for name, child in zip(names, opened[0], strict=True)}


def unpacked(node: Any) -> tuple[list[Any], Callable[[list[Any]], Any]] | None:
    """Return the samples of a packed field and the function that packs such samples; ``None`` for other fields."""
    if isinstance(node, PackedSequence):
        return unpack_sequence(node), lambda samples: pack_sequence(samples, enforce_sorted=False)
    if isinstance(node, torch.Tensor) and node.is_nested:
        return list(node.unbind()), lambda samples: torch.nested.as_nested_tensor(samples, layout=node.layout)
    if hasattr(node, "to_data_list") and hasattr(type(node), "from_data_list"):
        return node.to_data_list(), type(node).from_data_list
    return None


def _refill(node: Any, keys: list[Any], values: list[Any]) -> Any:
    fresh = copy.copy(node)
    if hasattr(node, "data") and isinstance(node.data, dict):  # UserDict shares .data with its copy
        fresh.data = {}
    for key, value in zip(keys, values, strict=True):
        fresh[key] = value
    return fresh


def _with_fields(node: Any, names: list[str], values: list[Any]) -> Any:
    fresh = copy.copy(node)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(fresh, name, value)
    return fresh


def is_plain_sequence(node: Any) -> bool:
    """Return whether ``node`` is a list or tuple without names of its fields."""
    return isinstance(node, (list, tuple)) and not hasattr(node, "_fields")


def _is_array(node: Any) -> bool:
    return isinstance(node, (torch.Tensor, np.ndarray))


def _common_lengths(children: list[Any]) -> list[int] | None:
    """Return the batch lengths that fit all children, most likely first; ``None`` if all are constants."""
    common: list[int] | None = None
    for child in children:
        lengths = _lengths(child)
        if lengths is not None:
            common = lengths if common is None else [n for n in common if n in lengths]
    return common


def _lengths(node: Any) -> list[int] | None:
    """Return the batch lengths that fit ``node``, the most likely first; ``None`` for a constant."""
    if (packed := unpacked(node)) is not None:
        return [len(packed[0])]
    if _is_array(node):
        return [node.shape[0]] if node.ndim else None
    opened = _open(node)
    if opened is None:
        return None
    common = _common_lengths(opened[0])
    if not is_plain_sequence(node):
        return common
    return [n for n in common or [] if n != len(node)] + [len(node)]


def holds_samples(node: Any) -> bool:
    """Return whether a list seems to hold samples: every entry is a container that directly contains a number."""
    if not is_plain_sequence(node) or not node:
        return False
    for child in node:
        opened = None if _is_array(child) else _open(child)
        if opened is None:
            return False
        if not any(
            isinstance(value, (int, float)) or (_is_array(value) and not value.ndim) for value in opened[0]
        ):
            return False
    return True


def length(batch: Any, hint: int | None = None) -> int:
    """Return the number of samples in a batch.

    Args:
        batch: a batch; the docstring of this module defines its structure.
        hint: the expected number, used if the structure alone is ambiguous (a list of two
            pairs is two fields or two samples).

    Raises:
        InputError: no field of the batch has a batch dimension, or the fields differ in length.
    """
    opened = None if _is_array(batch) or unpacked(batch) is not None else _open(batch)
    lengths = _lengths(batch) if opened is None else _common_lengths(opened[0])
    sequence = is_plain_sequence(batch)
    hinted = sequence and hint == len(batch) and hint not in (lengths or [])
    if (hinted or holds_samples(batch)) and not any(_is_array(child) and child.ndim for child in batch):
        return len(batch)
    if lengths:
        return hint if hint is not None and hint in lengths else lengths[0]
    if lengths is None and sequence and batch and all(isinstance(v, (str, bytes, int, float)) for v in batch):
        return len(batch)
    if lengths is None:
        raise InputError(
            f"a batch without a batch dimension: {describe(batch)}",
            "tensors, arrays or lists whose first dimension is the batch",
            "the loader yields single samples (batch_size=None) or only scalars",
            "give the loader a batch_size, or yield batches",
        )
    if sequence and not any(_is_array(child) for child in batch):
        return len(batch)
    raise InputError(
        f"a batch whose fields differ in length: {describe(batch)}",
        "fields with the same number of samples in their first dimension",
        "a collate_fn that joins fields of different samples, or puts the batch in another dimension",
        "make every field's first dimension the batch",
    )


def describe(batch: Any) -> str:
    """Describe the types, shapes and lengths in a batch in a few words, for messages."""
    if isinstance(batch, torch.Tensor):
        return f"NestedTensor of {batch.size(0)}" if batch.is_nested else f"Tensor{tuple(batch.shape)}"
    if isinstance(batch, PackedSequence):
        return "PackedSequence"
    if isinstance(batch, np.ndarray):
        return f"ndarray{batch.shape}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value)}" for key, value in batch.items()) + "}"
    opened = _open(batch)
    if opened is None:
        return type(batch).__name__
    children = opened[0]
    if len(children) > 6:
        return f"{type(batch).__name__} of {len(children)}"
    return f"{type(batch).__name__}({', '.join(map(describe, children))})"


def _is_list_of_samples(node: Any, size: int, path: str, lists: Lists) -> bool:
    """Return whether a sequence has one entry for each sample of a batch that holds ``size`` samples."""
    if not is_plain_sequence(node) or len(node) != size:
        return False
    if path in lists:
        return lists[path]
    if not path and holds_samples(node):
        return True
    common = _common_lengths(list(node))
    return common is None or size not in common


def index(batch: Any, indices: torch.Tensor, size: int, lists: Lists | None = None) -> Any:
    """Select samples of a batch and return them as a batch of the same structure.

    The tensors of the result are copies, which do not keep the memory of ``batch`` alive.

    Args:
        batch: a batch.
        indices: positions of the samples, int64 of shape ``(selected,)``, on the CPU.
        size: number of samples in ``batch``.
        lists: which lists hold samples; default: as their form suggests.
    """
    positions: dict[Any, torch.Tensor] = {torch.device("cpu"): indices}
    rows = indices.tolist()

    def select(node: Any, path: str = "") -> Any:
        if (packed := unpacked(node)) is not None:
            return packed[1]([packed[0][i] for i in rows])
        if isinstance(node, torch.Tensor):
            if not node.ndim:
                return node
            if node.device not in positions:
                positions[node.device] = indices.to(node.device, non_blocking=True)
            return node.index_select(0, positions[node.device])
        if isinstance(node, np.ndarray):
            return node[np.asarray(rows, dtype=np.intp)] if node.ndim else node
        opened = _open(node)
        if opened is None:
            return node
        if _is_list_of_samples(node, size, path, lists or {}):
            return type(node)([node[i] for i in rows])
        return opened[1]([select(child, f"{path}/{name}") for name, child in (children(node) or {}).items()])

    return select(batch)


def concatenate(batches: Sequence[Any], sizes: Sequence[int], lists: Lists | None = None) -> Any:
    """Join batches of the same structure along the batch dimension.

    Args:
        batches: the batches.
        sizes: number of samples in each of them.
        lists: which lists hold samples; default: as their form suggests.

    Raises:
        InputError: tensors differ in another dimension, as if they were padded to different lengths.
    """
    if len(batches) == 1:
        return batches[0]

    def join(nodes: list[Any], path: str = "") -> Any:
        first = nodes[0]
        if (packed := unpacked(first)) is not None:
            return packed[1]([sample for node in nodes for sample in (unpacked(node) or packed)[0]])
        if isinstance(first, torch.Tensor):
            return _cat(nodes) if first.ndim else first
        if isinstance(first, np.ndarray):
            return np.concatenate(nodes) if first.ndim else first
        opened = _open(first)
        if opened is None:
            return first
        pairs = zip(nodes, sizes, strict=True)
        if all(_is_list_of_samples(node, size, path, lists or {}) for node, size in pairs):
            return type(first)([sample for node in nodes for sample in node])
        parts = [children(node) or {} for node in nodes]
        return opened[1]([join([part[name] for part in parts], f"{path}/{name}") for name in parts[0]])

    return join(list(batches))


def _cat(tensors: list[torch.Tensor]) -> torch.Tensor:
    if len({tensor.shape[1:] for tensor in tensors}) > 1:
        raise InputError(
            f"tensors of shapes {[tuple(tensor.shape) for tensor in tensors]} to be joined into one batch",
            "the same shape after the first dimension",
            "the collate_fn pads each batch to its own longest sample",
            "pad every batch to one length (padding='max_length'), or pass concatenate= to the loader",
        )
    return torch.cat(tensors)


def split(batch: Any, sizes: Sequence[int], lists: Lists | None = None) -> list[Any]:
    """Cut a batch into consecutive batches of ``sizes`` samples, the inverse of ``concatenate``."""
    total, start, parts = sum(sizes), 0, []
    for size in sizes:
        parts.append(index(batch, torch.arange(start, start + size), total, lists))
        start += size
    return parts


def leaves(batch: Any) -> list[Any]:
    """Return all leaves of a batch in order: tensors, arrays and constants."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    opened = None if _is_array(batch) else _open(batch)
    return [batch] if opened is None else [leaf for child in opened[0] for leaf in leaves(child)]


def nbytes(batch: Any) -> int:
    """Return the bytes that the tensors and arrays of a batch hold; strings and numbers are not counted."""
    return sum(leaf.nbytes for leaf in leaves(batch) if _is_array(leaf))


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], batch: Any) -> Any:
    """Apply a function to every tensor and return the results in the structure of the batch."""
    if isinstance(batch, torch.Tensor):
        return function(batch)
    if type(batch) in (tuple, list):
        return type(batch)([map_tensors(function, child) for child in batch])
    if type(batch) is dict:
        return {key: map_tensors(function, child) for key, child in batch.items()}
    if isinstance(batch, PackedSequence):  # its batch_sizes stay on the CPU
        orders = (None if order is None else function(order) for order in batch[2:])
        return PackedSequence(function(batch.data), batch.batch_sizes, *orders)
    if unpacked(batch) is not None and hasattr(batch, "apply"):
        return copy.copy(batch).apply(function)
    opened = None if _is_array(batch) else _open(batch)
    if opened is None:
        return batch
    return opened[1]([map_tensors(function, child) for child in opened[0]])
