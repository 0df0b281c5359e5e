"""Rank, world size and simple collectives, with or without ``torch.distributed``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from loopwise.torch_internals import default_store

T = TypeVar("T")
_asked = Counter[str]()
"""Questions of this process, by what they are about."""


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return the rank in the default process group; without a group, torchrun's RANK, or 0."""
    return dist.get_rank() if _initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the size of the default process group; without a group, torchrun's WORLD_SIZE, or 1."""
    return dist.get_world_size() if _initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return whether this process is rank 0."""
    return rank() == 0


def agreed(about: str, propose: Callable[[], str]) -> str | None:
    """Return what the first rank to ask has proposed, on every rank; ``None`` if ranks have no process group yet.

    No rank waits for another, and ranks may leave out a question.  The n-th questions of all ranks about the same thing have
    the same answer.
    """
    if world_size() == 1:
        return propose()
    if not _initialized():
        return None
    _asked[about] += 1
    answer = default_store().compare_set(f"loopwise/{about}/{_asked[about]}", "", propose())
    return str(answer.decode())


def gather(value: T) -> list[T]:
    """Return the values of all ranks, in their order.  In a process group, every rank has to call this function."""
    if not _initialized():
        return [value]
    values = [value] * world_size()
    dist.all_gather_object(values, value)
    return values


def anywhere(flag: bool) -> bool:
    """Return whether ``flag`` is true on any rank.  In a process group, every rank has to call this function."""
    return any(gather(flag))


def from_main(function: Callable[[], T]) -> T:
    """Call ``function`` on rank 0 only and return its result, which must be picklable, on every rank.

    In a process group, every rank has to call this function.  An exception of ``function`` on rank 0 is raised
    on every rank, so that no rank waits for a rank that has failed.
    """
    if not _initialized():
        return function()
    outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
    if is_main():
        try:
            outcome = [(function(), None)]
        except Exception as raised:
            outcome = [(None, raised)]
    dist.broadcast_object_list(outcome, src=0)
    value, error = outcome[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]  # None only if T allows it
