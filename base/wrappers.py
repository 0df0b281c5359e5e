"""Functions that look beneath the wrappers of models, optimizers and tensors."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from loopwise.torch_internals import is_shard as is_shard


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model without DDP's wrapper."""
    while isinstance(model, DistributedDataParallel):
        model = model.module
    return model


def is_sharded(model: nn.Module) -> bool:
    """Return whether a part of the model is sharded by FSDP2.

    The class is compared by its name, because importing FSDP takes half a second.
    """
    return any(base.__name__ == "FSDPModule" for module in model.modules() for base in type(module).__mro__)


def innermost(optimizer: Any) -> Any:
    """Return the optimizer inside the wrappers of Lightning or Accelerate, and other objects unchanged."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
