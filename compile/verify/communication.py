"""Communication between ranks in trial passes: which passes may have some, and how ranks take the same way.

A rank that alone makes a pass with a collective operation waits for the others for ever.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loopwise.preserve import restored

from ..torch_internals import TorchDispatchMode

LIBRARIES = ("c10d::", "_c10d_functional::", "_c10d_functional_autograd::")
"""Beginnings of the names of collective operations."""


class CollectivesSeen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mode that notes whether a pass calls a collective operation, as ``SyncBatchNorm`` and ``all_gather`` do."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.any = False
        """Whether there was one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        self.any = self.any or func.name().startswith(LIBRARIES)
        return func(*args, **(kwargs or {}))


def obstacle(model: nn.Module) -> str:
    """Return the reason why DDP's wrapper allows no trial passes; empty if there is none."""
    if isinstance(model, DistributedDataParallel) and model.static_graph:
        return "DDP(static_graph=True) records its first backward pass, which a trial pass would be"
    return ""


@contextlib.contextmanager
def without_communication(model: nn.Module) -> Iterator[None]:
    """Keep DDP from communicating: one rank may compare its step while the other ranks do not."""
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    with model.no_sync(), without_broadcast(model):
        yield


@contextlib.contextmanager
def without_broadcast(model: nn.Module) -> Iterator[None]:
    """Keep DDP from sending buffers before the forward pass; gradients are averaged as usual."""
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    with restored("require_forward_param_sync", [model]):
        model.require_forward_param_sync = False
        yield
