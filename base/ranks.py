"""Rank, world size and one-to-all helpers that work with and without ``torch.distributed``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def _live() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's rank: of the default group, else of torchrun's environment, else 0."""
    return dist.get_rank() if _live() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes: of the default group, else of torchrun's environment, else 1."""
    return dist.get_world_size() if _live() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this is rank 0."""
    return rank() == 0


def anywhere(flag: bool) -> bool:
    """Whether ``flag`` is true on any rank.  Collective when a process group is live."""
    if not _live():
        return flag
    flags: list[bool] = [False] * world_size()
    dist.all_gather_object(flags, flag)
    return any(flags)


def from_main(function: Callable[[], T]) -> T:
    """Call ``function`` on rank 0 only and return its (picklable) result on every rank.

    Collective when a process group is live: every rank must call it.  An exception on rank 0 is
    raised on every rank, so that no rank waits for one that has failed.
    """
    if not _live():
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
    return value  # type: ignore[return-value]  # None only when T allows it
