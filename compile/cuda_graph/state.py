"""Save, restore and compare the state of a training step, its batch excepted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loopwise import random_state
from loopwise.torch_internals import buffers as own_buffers
from loopwise.torch_internals import parameters as own_parameters

from ..spec import StepSpec
from ..torch_internals import has_hooks

_PLAIN = {bool, int, float, str}


def modules_of(spec: StepSpec) -> list[nn.Module]:
    """Return the modules of the step's model, and those of its loss if that is a module."""
    loss = spec.loss.modules() if isinstance(spec.loss, nn.Module) else ()
    return [*spec.model.modules(), *loss]


def parameters_of(modules: Iterable[nn.Module], optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of the modules and those that only the optimizer has, each once."""
    own = (p for module in modules for p in own_parameters(module).values() if p is not None)
    updated = (p for group in optimizer.param_groups for p in group["params"])
    return list({id(p): p for p in (*own, *updated)}.values())


def buffers_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the buffers of all modules, one after the other."""
    return [b for module in modules for b in own_buffers(module).values() if b is not None]


def plain_attributes(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Return for each module its attributes that are numbers, texts and modes."""
    return [{k: v for k, v in vars(module).items() if type(v) in _PLAIN} for module in modules]


def _optimizer_tensors(optimizer: Optimizer) -> list[Tensor]:
    return [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]


class SavedState:
    """Copies of weights, buffers, gradients and the optimizer's state, which can be written back in place.

    The copies take as much memory as the originals.

    Args:
        spec: the training step; it has an optimizer.
    """

    def __init__(self, spec: StepSpec) -> None:
        assert spec.optimizer is not None
        self.modules = modules_of(spec)
        self.parameters = parameters_of(self.modules, spec.optimizer)
        self.buffers = buffers_of(self.modules)
        self.plain = plain_attributes(self.modules)
        self._buffer_dicts = [dict(own_buffers(module)) for module in self.modules]
        self._gradients = [parameter.grad for parameter in self.parameters]
        gradients = [grad for grad in self._gradients if grad is not None]
        tensors = [*self.parameters, *self.buffers, *_optimizer_tensors(spec.optimizer), *gradients]
        self._copies = [(tensor, tensor.detach().clone()) for tensor in tensors]
        self._random = random_state.get()

    def copies_of(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the saved copies of some of the tensors."""
        copies = {id(tensor): copy for tensor, copy in self._copies}
        return [copies[id(tensor)] for tensor in tensors]

    def restore(self, gradients: bool) -> None:
        """Write the copies back.

        Args:
            gradients: also set each parameter's ``grad`` to the tensor that it had when the state was saved.
        """
        if gradients:
            for parameter, grad in zip(self.parameters, self._gradients, strict=True):
                parameter.grad = grad
        for module, buffers, plain in zip(self.modules, self._buffer_dicts, self.plain, strict=True):
            own_buffers(module).update(buffers)
            vars(module).update(plain)
        with torch.no_grad():
            for tensor, copy in self._copies:
                tensor.data.copy_(
                    copy
                )  # written through .data, so that autograd's version counter does not change
        random_state.set(self._random)


def signature(spec: StepSpec) -> Any:
    """Return everything that a recording of the step fixes, as values that can be compared.

    These are the addresses of tensors, modes and numbers of modules, hyperparameters other than the learning rate,
    autocast, and the presence of hooks.  Lists of tensors, and values that a user's function closes over, are not seen.
    """
    modules, optimizer, kind = modules_of(spec), spec.optimizer, spec.device.type
    assert optimizer is not None
    loose = [v for module in modules for v in vars(module).values() if type(v) is Tensor]
    parameters = parameters_of(modules, optimizer)
    changing = {"params", "lr"}
    groups = [{k: v for k, v in group.items() if k not in changing} for group in optimizer.param_groups]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    rates = [g["lr"] for g in optimizer.param_groups if isinstance(g["lr"], Tensor)]
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
    return (
        [(t.data_ptr(), t.requires_grad) for t in (*parameters, *buffers_of(modules), *loose)],
        plain_attributes(modules),
        [tensor.data_ptr() for tensor in (*_optimizer_tensors(optimizer), *rates)],
        (sizes, groups),
        (autocast, torch.is_autocast_cache_enabled(), torch.is_grad_enabled()),
        torch.are_deterministic_algorithms_enabled(),
        has_hooks(modules, parameters, optimizer),
    )
