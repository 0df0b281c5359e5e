"""The model beneath the wrappers of torch.distributed."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without DDP's wrapper."""
    while isinstance(model, DistributedDataParallel):
        model = model.module
    return model


def is_sharded(model: nn.Module) -> bool:
    """Whether a part of the model is sharded by FSDP2; by its class's name, for to import that takes half a second."""
    return any(base.__name__ == "FSDPModule" for module in model.modules() for base in type(module).__mro__)
