"""Rebuild a batch from its header and its blocks."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from . import pack

_MODULE = pack.__name__


class Unpacker(pickle.Unpickler):
    """Unpickler of one header.

    The functions that it returns for marks must not refer to it: it keeps them and the batch, and such a circle would live, with
    the batch's memory, until the garbage collector runs.
    """

    def __init__(self, header: bytes, marks: dict[str, Callable[..., Any]]) -> None:
        super().__init__(io.BytesIO(header))
        self._marks = marks

    def find_class(self, module: str, name: str) -> Any:
        """Return the class or function of a name; for the two marks of a header the functions that rebuild."""
        if module == _MODULE and name in self._marks:
            return self._marks[name]
        return super().find_class(module, name)


class _Views:
    """Tensors and arrays as views of the given memory."""

    def __init__(self, inline: bytearray, blocks: Sequence[Any]) -> None:
        self._blocks = blocks
        self._inline = inline if inline or not blocks else blocks[-1]

    def _tensor(
        self,
        source: int,
        offset: int,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None,
    ) -> torch.Tensor:
        if 0 in shape:
            empty = torch.empty(shape, dtype=dtype, device="cpu")
            return empty if strides is None else empty.as_strided(shape, strides)
        memory = self._inline if source < 0 else self._blocks[source]
        count = 1
        for size in shape:
            count *= size
        flat = torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)
        if strides is not None:
            return flat.as_strided(shape, strides)
        return flat if len(shape) == 1 else flat.view(shape)

    def _storage(self, *description: Any) -> torch.UntypedStorage:
        return self._tensor(*description).clone().untyped_storage()

    def _array(self, source: int, offset: int, dtype: str, shape: tuple[int, ...]) -> Any:
        if 0 in shape:
            return np.empty(shape, dtype)
        memory = self._inline if source < 0 else self._blocks[source]
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(memory, dtype, count, offset).reshape(shape)


def unpack(header: bytes, inline: bytes | bytearray, blocks: Sequence[Any]) -> Any:
    """Return the batch of a header.

    Args:
        header: the batch's header.
        inline: the bytes of its small tensors, which become the memory of those tensors.
        blocks: a writable buffer of bytes for each block, in the order of ``Packed.blocks``.  Tensors are views of them, and
            hold them.
    """
    views = _Views(bytearray(inline), blocks)
    marks: dict[str, Callable[..., Any]] = {
        "_tensor": views._tensor,
        "_storage": views._storage,
        "_array": views._array,
    }
    return Unpacker(header, marks).load()
