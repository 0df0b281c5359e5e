"""What a training step reads and writes besides its batch: kept, restored, and told apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.optim import Optimizer
from torch.optim import optimizer as all_optimizers

from loopwise import random_state

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PLAIN = {bool, int, float, str}


def modules_of(step: Any) -> list[nn.Module]:
    """The modules of a step's ``model``, and of its ``loss`` where that is one."""
    loss = step.loss.modules() if isinstance(step.loss, nn.Module) else ()
    return [*step.model.modules(), *loss]


def parameters_of(modules: Iterable[nn.Module], optimizer: Optimizer) -> list[Tensor]:
    """Those of the modules and those that only the optimizer has, each once."""
    found = [p for module in modules for p in module._parameters.values() if p is not None]
    found += [p for group in optimizer.param_groups for p in group["params"]]
    return list({id(p): p for p in found}.values())


def buffers_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Those of all modules, one after the other."""
    return [b for module in modules for b in module._buffers.values() if b is not None]


def plain_of(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Numbers, texts and modes that are attributes of each module."""
    return [{k: v for k, v in vars(module).items() if type(v) in _PLAIN} for module in modules]


def _tensors_of(optimizer: Optimizer) -> list[Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]


class Kept:
    """Copies of weights, buffers, gradients and the optimizer's state, to be written back where they were.

    The copies take as much memory as these.  ``step`` has a ``model``, a ``loss`` and an ``optimizer``.
    """

    def __init__(self, step: Any) -> None:
        self.modules = modules_of(step)
        self.parameters = parameters_of(self.modules, step.optimizer)
        self.buffers = buffers_of(self.modules)
        self.plain = plain_of(self.modules)
        self._places = [dict(module._buffers) for module in self.modules]
        self._gradients = [parameter.grad for parameter in self.parameters]
        gradients = [grad for grad in self._gradients if grad is not None]
        tensors = [*self.parameters, *self.buffers, *_tensors_of(step.optimizer), *gradients]
        self._copies = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self._random = random_state.get()

    def of(self, tensors: list[Tensor]) -> list[Tensor]:
        """The copies of these tensors."""
        found = {id(tensor): copy for tensor, copy in self._copies}
        return [found[id(tensor)] for tensor in tensors]

    def restore(self, gradients: bool) -> None:
        """Write the copies back; with ``gradients`` also put back which tensors are gradients."""
        if gradients:
            for parameter, grad in zip(self.parameters, self._gradients, strict=True):
                parameter.grad = grad
        for module, buffers, plain in zip(self.modules, self._places, self.plain, strict=True):
            module._buffers.update(buffers)
            vars(module).update(plain)
        with torch.no_grad():
            for tensor, copy in self._copies:
                tensor.data.copy_(copy)  # .data: no version bump for a graph that saved it
        random_state.set(self._random)


def signature(step: Any) -> Any:
    """What a recording of ``step`` (with ``model``, ``loss``, ``optimizer``, ``device``) holds for good, to compare:
    where tensors lie, modes and numbers of modules, hyperparameters other than the learning rate, autocast, and
    whether something watches.  Not seen: lists of tensors, and what a function of the user's closes over.
    """
    modules, optimizer, kind = modules_of(step), step.optimizer, step.device.type
    loose = [v for module in modules for v in vars(module).values() if type(v) is Tensor]
    parameters = parameters_of(modules, optimizer)
    own = [*parameters, *buffers_of(modules), *loose]
    groups = [
        (len(group["params"]), {name: value for name, value in group.items() if name not in ("params", "lr")})
        for group in optimizer.param_groups
    ]
    rates = [g["lr"] for g in optimizer.param_groups if isinstance(g["lr"], Tensor)]
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    return (
        [(tensor.data_ptr(), tensor.requires_grad) for tensor in own],
        plain_of(modules),
        [tensor.data_ptr() for tensor in (*_tensors_of(optimizer), *rates)],
        groups,
        (autocast, torch.is_autocast_cache_enabled(), torch.is_grad_enabled()),
        torch.are_deterministic_algorithms_enabled(),
        hooked(modules, parameters, optimizer),
    )


def hooked(modules: list[nn.Module], parameters: list[Tensor], optimizer: Optimizer) -> bool:
    """Whether hooks watch passes or updates: a replay would not call them."""
    if any(vars(all_modules).get(f"_global{name}") for name in _HOOKS):
        return True
    for name in ("pre_hooks", "post_hooks"):
        if vars(all_optimizers).get(f"_global_optimizer_{name}"):
            return True
        if getattr(optimizer, f"_optimizer_step_{name}", None):
            return True
    if any(p._backward_hooks or p._post_accumulate_grad_hooks for p in parameters):
        return True
    return any(vars(module)[name] for module in modules for name in _HOOKS)
