"""Pack a batch: its structure as a pickled header, its tensors as bytes.

A header is the pickle of the batch with every dense tensor, storage and plain array replaced by a call of ``_tensor``,
``_storage`` or ``_array``:
``(source, offset, dtype, shape, strides)``.  ``source`` is -1 for the inline bytes of the message, and otherwise the number of
a block; ``strides`` are ``None`` if they are the usual ones.  Everything else is pickled as it is
(sparse, nested and quantized tensors, subclasses, tensors that require a gradient), and counted.
"""

from __future__ import annotations

import ctypes
import io
import pickle
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..torch_internals import collate_functions, collate_tensors
from .memory import INLINE, LARGE, Block, Memory

ALIGNMENT = 16
"""Bytes to which small tensors are aligned in their buffer."""


@dataclass(slots=True)
class Packed:
    """A batch without structure."""

    header: bytes
    inline: bytes
    """Small tensors, one after the other."""
    blocks: list[Block]
    sizes: list[int]
    """Bytes in use of each block."""
    pickled: int
    """Tensors that were pickled with their data."""
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.nbytes = len(self.header) + len(self.inline) + sum(self.sizes)


def _tensor(*description: Any) -> Any:
    """Mark the place of a tensor in a header; ``Unpacker`` replaces this function."""
    raise RuntimeError("a packed batch is unpacked by unpack()")


def _storage(*description: Any) -> Any:
    """Mark the place of an untyped storage in a header; ``Unpacker`` replaces this function."""
    raise RuntimeError("a packed batch is unpacked by unpack()")


def _array(*description: Any) -> Any:
    """Mark the place of an array in a header; ``Unpacker`` replaces this function."""
    raise RuntimeError("a packed batch is unpacked by unpack()")


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is nothing but numbers in the memory of the processor."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad or tensor.is_nested or tensor.is_quantized)
        and not (tensor.is_conj() or tensor.is_neg())
    )


def memory_order(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Return the dimensions from the slowest to the fastest one if the tensor fills its memory in that order."""
    strides = tensor.stride()
    order = sorted(range(tensor.ndim), key=lambda d: (-strides[d], d))
    return tuple(order) if tensor.permute(order).is_contiguous() else None


Retained = tuple[weakref.ref[Any], Block]
"""A reference to the memory of tensors that the user's code keeps in the worker, and their block."""


def unusual_strides(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Return the strides of a contiguous tensor if dimensions of at most one element have others than usual.

    They tell ``channels_last`` from the usual format if there is one channel.
    """
    shape, strides = tensor.shape, tensor.stride()
    if len(shape) < 2 or not (1 in shape or 0 in shape):
        return None
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != expected:
            return strides
        expected *= max(size, 1)
    return None


class Packer(pickle.Pickler):
    """Pickler that puts tensors and arrays into blocks; it serves one batch: ``stack``, ``pack``, ``finish``."""

    def __init__(self, memory: Memory) -> None:
        self._header = io.BytesIO()
        super().__init__(self._header, protocol=5)
        self._memory = memory
        self._stacked: dict[int, tuple[Block, int]] = {}
        """Address of a tensor that was stacked into a block -> the block and its bytes."""
        self._references: list[Retained] = []
        """All blocks of stacked tensors, with references that are dead once nobody has the tensors."""
        self._thread = threading.get_ident()
        self._blocks: list[Block] = []
        self._sizes: list[int] = []
        self._small: list[bytes] = []
        self._small_bytes = 0
        self._pickled = 0

    def stack(self, tensors: list[torch.Tensor], **options: Any) -> torch.Tensor:
        """Stack tensors into a block; takes the place of ``default_collate``'s function for tensors.

        A thread of the dataset collates batches for later, and so does code that kept this function: their tensors get ordinary
        memory.
        """
        first = tensors[0]
        if self._thread != threading.get_ident():
            return collate_tensors(tensors, **options)
        if type(first) is not torch.Tensor or first.layout is not torch.strided or first.device.type != "cpu":
            return collate_tensors(tensors, **options)
        if first.is_nested or first.is_quantized:
            return collate_tensors(tensors, **options)
        shape, nbytes = (len(tensors), *first.shape), len(tensors) * first.nbytes
        if nbytes < LARGE:
            return torch.stack(tensors, 0, out=torch.empty(shape, dtype=first.dtype, device="cpu"))
        block = self._memory.allocate(nbytes)
        memory = memoryview(block.buffer)  # lives as long as any tensor in it
        self._references.append((weakref.ref(memory), block))
        out = torch.frombuffer(memory, dtype=first.dtype, count=nbytes // first.itemsize).view(shape)
        self._stacked[out.data_ptr()] = block, nbytes
        return torch.stack(tensors, 0, out=out)

    def pack(self, batch: Any) -> Packed:
        """Return the batch in packed form."""
        self.dump(batch)
        inline = b"".join(self._small)
        if len(inline) > INLINE:
            block = self._memory.allocate(len(inline))
            memoryview(block.buffer)[: len(inline)] = inline
            self._blocks.append(block)
            self._sizes.append(len(inline))
            inline = b""
        return Packed(self._header.getvalue(), inline, self._blocks, self._sizes, self._pickled)

    def finish(self, packed: Packed | None) -> list[Retained]:
        """Give back the blocks that are not sent; the packer is used up.

        The caller has dropped the batch, so that whoever still has a stacked tensor keeps it for later: a buffer of batches, a
        cache, the local variable of a generator.  Its block cannot be sent, since the memory would be written again once the
        training process has released it; a copy is sent.

        Args:
            packed: the result of ``pack``, which is changed; ``None``: there is no batch to send.

        Returns:
            Blocks that belong to the user's code as long as their references are alive; the caller frees them afterwards.
        """
        self._thread = 0
        self._stacked.clear()
        self.clear_memo()
        retained, blocks = [], [] if packed is None else packed.blocks
        numbers = {id(block): number for number, block in enumerate(blocks)}
        for reference, block in self._references:
            number = numbers.get(id(block))
            if reference() is not None:
                retained.append((reference, block))
                if number is not None and packed is not None:
                    blocks[number] = self._copy(block, packed.sizes[number])
            elif number is None:
                self._memory.free(block)
        if packed is None:
            stacked = {id(block) for _, block in self._references}
            for block in self._blocks:
                if id(block) not in stacked:
                    self._memory.free(block)
        return retained

    def _copy(self, block: Block, nbytes: int) -> Block:
        copy = self._memory.allocate(nbytes)
        memoryview(copy.buffer)[:nbytes] = memoryview(block.buffer)[:nbytes]
        return copy

    def reducer_override(self, value: Any) -> Any:
        """Return the call that rebuilds a tensor or an array, for all other objects ``NotImplemented``."""
        if type(value) is torch.Tensor:
            if is_plain(value):
                return _tensor, self._place_tensor(value)
            self._pickled += 1
        elif isinstance(value, torch.Tensor):
            self._pickled += 1
        elif type(value) is np.ndarray and value.dtype.kind in "biufc" and value.flags.c_contiguous:
            source, offset = self._place_array(value)
            return _array, (source, offset, value.dtype.str, value.shape)
        elif type(value) is torch.UntypedStorage and value.device.type == "cpu":
            return _storage, self._place_tensor(torch.empty(0, dtype=torch.uint8, device="cpu").set_(value))
        return NotImplemented

    def _place_tensor(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        if tensor._is_zerotensor():  # it has no memory
            tensor = tensor.clone()
        shape, strides = tuple(tensor.shape), None
        if tensor.is_contiguous():
            strides = unusual_strides(tensor)
        elif (order := memory_order(tensor)) is not None:
            strides, tensor = tensor.stride(), tensor.permute(order)
        else:
            tensor = tensor.contiguous()
        nbytes = tensor.nbytes
        if nbytes < LARGE:
            return *self._place_small(tensor.data_ptr(), nbytes), tensor.dtype, shape, strides
        block, room = self._stacked.pop(tensor.data_ptr(), (None, 0))
        if block is None or room < nbytes:
            if block is not None:
                self._stacked[tensor.data_ptr()] = block, room
            block = self._memory.allocate(nbytes)
            target = torch.frombuffer(block.buffer, dtype=tensor.dtype, count=tensor.numel())
            target.view(tensor.shape).copy_(tensor)
        return self._add(block, nbytes), 0, tensor.dtype, shape, strides

    def _place_array(self, array: Any) -> tuple[int, int]:
        if array.nbytes < LARGE:
            return self._place_small(array.ctypes.data, array.nbytes)
        block = self._memory.allocate(array.nbytes)
        np.frombuffer(block.buffer, array.dtype, array.size).reshape(array.shape)[...] = array
        return self._add(block, array.nbytes), 0

    def _place_small(self, address: int, nbytes: int) -> tuple[int, int]:
        offset = self._small_bytes
        if nbytes:
            padding = -nbytes % ALIGNMENT
            self._small.append(ctypes.string_at(address, nbytes) + bytes(padding))
            self._small_bytes += nbytes + padding
        return -1, offset

    def _add(self, block: Block, nbytes: int) -> int:
        self._blocks.append(block)
        self._sizes.append(nbytes)
        return len(self._blocks) - 1


class Collating:
    """Context in which ``default_collate`` stacks tensors with a packer, also when the user's own function calls it."""

    def __init__(self, packer: Packer) -> None:
        self._packer = packer

    def __enter__(self) -> None:
        functions = collate_functions()
        self._before = functions.get(torch.Tensor)
        if self._before is collate_tensors_function():
            functions[torch.Tensor] = self._packer.stack

    def __exit__(self, *_: object) -> None:
        functions = (
            collate_functions()
        )  # in which the user's code may have registered another function meanwhile
        if self._before is not None and functions.get(torch.Tensor) == self._packer.stack:
            functions[torch.Tensor] = self._before


def collate_tensors_function() -> Any:
    """Return the function that ``default_collate`` uses for tensors unless the user replaced it."""
    return _ORIGINAL


_ORIGINAL = collate_functions()[torch.Tensor]
