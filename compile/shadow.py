"""Training steps that leave no trace: for measuring and for comparing."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from loopwise import batch as batches
from loopwise import random_state
from loopwise.model import unwrapped
from loopwise.preserve import preserve

from . import door

Compute = Callable[[Any], torch.Tensor]
Observed = dict[str, torch.Tensor]


@contextlib.contextmanager
def shadow(model: nn.Module) -> Iterator[None]:
    """Restore on leaving what a forward and backward pass changes: gradients, buffers, modes, random states."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    alone = model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()
    try:
        with preserve(model), alone:
            for parameter, _ in kept:
                parameter.grad = None
            yield
    finally:
        for parameter, grad in kept:
            parameter.grad = grad


def total(loss: torch.Tensor) -> torch.Tensor:
    """The number that backward starts from: the loss, or the mean of one loss a sample."""
    door.trainable(loss)
    return loss.mean() if loss.ndim else loss


def observe(compute: Compute, model: nn.Module, batch: Any) -> Observed:
    """One forward and backward pass: loss, gradients by parameter, and buffers after it; all restored."""
    return observe_draws(compute, model, batch)[0]


def observe_draws(compute: Compute, model: nn.Module, batch: Any) -> tuple[Observed, bool]:
    """As ``observe``, and whether the pass drew random numbers."""
    with shadow(model):
        before = _randomness()
        loss = total(compute(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        drew = before != _randomness()
        found = {"loss": loss.detach().clone()}
        inner = unwrapped(model)
        for name, parameter in inner.named_parameters():
            if parameter.grad is not None:
                found[f"gradient/{name}"] = parameter.grad.detach().clone()
        found |= {f"buffer/{name}": buffer.detach().clone() for name, buffer in inner.named_buffers()}
    return found, drew


def _randomness() -> list[Any]:
    """The random states of Python, NumPy, torch and its devices, to compare."""
    leaves = tree_leaves(random_state.get())
    return [leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def step_of(compute: Compute, model: nn.Module, batch: Any) -> Callable[[], None]:
    """A forward and backward pass to be timed, inside ``shadow``."""
    parameters = list(model.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        total(compute(batch)).backward()  # type: ignore[no-untyped-call]

    return step


def in_double(model: nn.Module, loss: Any, batch: Any) -> tuple[nn.Module, Any, Any]:
    """Copies of all three in float64; the model without DDP's wrapper."""
    model = unwrapped(model)
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in grads:
            parameter.grad = None  # deepcopy would copy them
        model = copy.deepcopy(model).double()
    finally:
        for parameter, grad in grads:
            parameter.grad = grad
    loss = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss

    def doubled(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    return model, loss, batches.map_tensors(doubled, batch)
