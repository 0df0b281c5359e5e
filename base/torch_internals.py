"""Adapter to the private names of torch that several parts need; no other module of the base may use them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader


def buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    """Return the module's own dictionary of buffers, in which they can be replaced."""
    return module._buffers


def parameters(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """Return the module's own dictionary of parameters."""
    return module._parameters


def version(tensor: torch.Tensor) -> int:
    """Return the counter that torch increases with every change of the tensor in place."""
    return int(tensor._version)


def is_shard(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is a DTensor; the test does not import DTensor, which would take a second."""
    return hasattr(tensor, "_local_tensor")


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a DTensor, and any other tensor unchanged.

    ``DTensor.to_local`` would add a node to the graph of autograd.
    """
    return getattr(tensor, "_local_tensor", tensor)


def original(model: nn.Module) -> nn.Module:
    """Return the model inside the wrapper that ``torch.compile(model)`` returned, and any other model unchanged."""
    return getattr(model, "_orig_mod", model)


def compiled_call(module: nn.Module) -> Any:
    """Return the function that ``module.compile()`` put in the place of the module's call, or ``None``."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Any) -> None:
    """Replace the function that ``compiled_call`` returns; ``None`` lets the module run eagerly."""
    module._compiled_call_impl = call


def uncompiled_call(module: nn.Module) -> Callable[..., Any]:
    """Return the module's call with its hooks, without the function that ``module.compile()`` put in its place."""
    return module._call_impl


def saved_tensor_hooks_are_on() -> bool:
    """Return whether hooks pack the tensors that autograd saves, as those of activation checkpointing do."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def is_compiled(model: nn.Module) -> bool:
    """Return whether the model was compiled, by ``torch.compile(model)`` or by ``compile()`` of a submodule."""
    compiled = any(compiled_call(module) is not None for module in model.modules())
    return original(model) is not model or compiled


def default_store() -> Any:
    """Return the key-value store of the default process group, which every rank reads and writes."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def call_before_executors_end(function: Callable[[], object]) -> None:
    """Register a function to be called when the program ends, while event loops can still open connections.

    Functions of ``atexit`` run too late: asyncio's thread pool for address look-ups is shut down by then.
    Functions are called in the reverse order of their registration.
    """
    import concurrent.futures.thread  # noqa: F401  # registers its own exit function, which then runs after ours
    import threading

    vars(threading)["_register_atexit"](function)  # in CPython 3.9 to 3.14


def without_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a copy of a DataLoader that shares its data, but no worker processes that live between epochs."""
    own = copy.copy(loader)
    own._iterator = None
    return own
