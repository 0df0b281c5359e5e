"""Resumption of an epoch: the random states before it, and the sampler once more from there."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from loopwise.errors import StateError

from ..lanes import states


def as_tensor(data: bytes | None) -> torch.Tensor | None:
    """Return bytes as a tensor, which ``torch.load(weights_only=True)`` takes."""
    return None if data is None else torch.frombuffer(bytearray(data), dtype=torch.uint8)


def as_bytes(data: torch.Tensor | None) -> bytes | None:
    """Return the bytes of ``as_tensor``."""
    return None if data is None else data.numpy().tobytes()


def generators(loader: DataLoader[Any]) -> list[torch.Generator]:
    """Return the generators of the loader and its samplers, without repetition."""
    owners = (loader, loader.sampler, loader.batch_sampler)
    found = [getattr(owner, "generator", None) for owner in owners]
    unique = {id(generator): generator for generator in found if isinstance(generator, torch.Generator)}
    return list(unique.values())


class RandomPoint:
    """The random states on which the order of an epoch depends, at one moment."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._own = [generator.get_state() for generator in generators(loader)]
        self._global = states.get()

    def state(self) -> dict[str, Any]:
        """Return the states as tensors."""
        return {"generators": list(self._own), "global": as_tensor(self._global)}

    @classmethod
    def of(cls, state: dict[str, Any]) -> RandomPoint:
        """Return the point of a state."""
        point = cls.__new__(cls)
        point._own, point._global = state["generators"], as_bytes(state["global"]) or b""
        return point

    def restore(self, loader: DataLoader[Any]) -> None:
        """Set all states to those of this moment."""
        own = generators(loader)
        if len(own) != len(self._own):
            raise StateError(
                f"a loader with {len(own)} generators, and a state of one with {len(self._own)}",
                "the loader that the state was taken from",
                "generator= was passed to one of them only",
                "make the loader with the same arguments",
            )
        for generator, state in zip(own, self._own, strict=True):
            generator.set_state(state)
        self.restore_global()

    def restore_global(self) -> None:
        """Set the global random states to those of this moment."""
        states.set(self._global)


class Draws:
    """The sampler's items of one epoch: how many were drawn, and a checksum by which a replay is compared."""

    def __init__(self) -> None:
        self.count = 0
        self.checksum = 0

    def add(self, indices: Any) -> None:
        """Count an item."""
        self.count += 1
        if isinstance(indices, list):
            data = repr(indices).encode()
        else:
            try:
                data = pickle.dumps(indices)
            except Exception:
                data = b""
        self.checksum = zlib.crc32(data, self.checksum)

    def replay(self, sampler: Iterator[Any], count: int, checksum: int) -> None:
        """Draw the items that were drawn before.

        Raises:
            StateError: they are others.
        """
        while self.count < count:
            try:
                self.add(next(sampler))
            except StopIteration:
                break
        if (self.count, self.checksum) != (count, checksum):
            raise StateError(
                f"a sampler that does not repeat the first {count} batches of the interrupted epoch",
                "the same samples in the same order",
                "another dataset, sampler, batch size or epoch, or a sampler with a random state of its own",
                "make the loader as before, call set_epoch as before, and give the sampler a generator",
            )
