"""What a training step reads and writes besides its batch: kept, restored, and told apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.optim import Optimizer
from torch.optim import optimizer as all_optimizers

from loopwise import random_state

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Kept:
    """Copies of weights, buffers, gradients and the optimizer's state, to be written back where they were.

    The copies take as much memory as these.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self._parameters = list(model.parameters())
        self._gradients = [parameter.grad for parameter in self._parameters]
        gradients = [grad for grad in self._gradients if grad is not None]
        self._tensors = [*self._parameters, *model.buffers(), *_tensors_of(optimizer), *gradients]
        self._copies = [tensor.detach().clone() for tensor in self._tensors]
        self._random = random_state.get()

    def of(self, parameters: list[nn.Parameter]) -> list[Tensor]:
        """The copies of parameters of the model, all of them, in its order."""
        return self._copies[: len(parameters)]

    def restore(self, gradients: bool) -> None:
        """Write the copies back; with ``gradients`` also put back which tensors are gradients."""
        if gradients:
            for parameter, grad in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = grad
        with torch.no_grad():
            for tensor, copy in zip(self._tensors, self._copies, strict=True):
                tensor.data.copy_(copy)  # .data: no version bump for a graph that saved it
        random_state.set(self._random)


def _tensors_of(optimizer: Optimizer) -> list[Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]


def signature(step: Any) -> Any:
    """What a recording of ``step`` (with ``model``, ``optimizer``, ``device``) holds for good, to compare: where
    its tensors lie, modes, hyperparameters other than the learning rate, autocast, and whether something watches."""
    modules, optimizer, kind = list(step.model.modules()), step.optimizer, step.device.type
    own = [
        (tensor.data_ptr(), tensor.requires_grad)
        for module in modules
        for tensors in (module._parameters, module._buffers)
        for tensor in tensors.values()
        if tensor is not None
    ]
    groups = [
        (len(group["params"]), {name: value for name, value in group.items() if name not in ("params", "lr")})
        for group in optimizer.param_groups
    ]
    rates = [g["lr"].data_ptr() for g in optimizer.param_groups if isinstance(g["lr"], Tensor)]
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    return (
        own,
        [module.training for module in modules],
        [tensor.data_ptr() for tensor in _tensors_of(optimizer)],
        groups,
        rates,
        (autocast, torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()),
        hooked(modules, optimizer),
    )


def hooked(modules: list[nn.Module], optimizer: Optimizer) -> bool:
    """Whether hooks watch the passes of ``modules`` or the optimizer's steps: a replay would not call them."""
    if any(vars(all_modules).get(f"_global{name}") for name in _HOOKS):
        return True
    for name in ("pre_hooks", "post_hooks"):
        if vars(all_optimizers).get(f"_global_optimizer_{name}"):
            return True
        if getattr(optimizer, f"_optimizer_step_{name}", None):
            return True
    return any(
        any(
            p is not None and (p._backward_hooks or p._post_accumulate_grad_hooks)
            for p in module._parameters.values()
        )
        or any(vars(module)[name] for name in _HOOKS)
        for module in modules
    )
