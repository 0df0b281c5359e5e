"""Training steps that leave no trace: for measuring and for comparing."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from loopwise import batch as batches
from loopwise import random_state
from loopwise.preserve import preserve
from loopwise.wrappers import unwrap

from .. import options

Compute = Callable[[Any], torch.Tensor]
Observed = dict[str, torch.Tensor]
PLACES = 4
"""Last places that a nudge moves float32 by, about what the order of additions does; lower precisions by one."""
FINE = 1e-6
"""Last places below this are those of float32 and float64."""


@contextlib.contextmanager
def shadow(model: nn.Module) -> Iterator[None]:
    """Restore on leaving what a forward and backward pass changes: gradients, buffers, modes, random states."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        with preserve(model), _alone(model):
            for parameter, _ in kept:
                parameter.grad = None
            yield
    finally:
        for parameter, grad in kept:
            parameter.grad = grad


@contextlib.contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """DDP's wrapper without what it does together with other ranks: one rank may doubt what no other does."""
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    together = model.require_forward_param_sync
    try:
        with model.no_sync():
            model.require_forward_param_sync = False  # buffers are not sent, either
            yield
    finally:
        model.require_forward_param_sync = together


@contextlib.contextmanager
def nudged(model: nn.Module, seed: int) -> Iterator[None]:
    """The model's parameters a few last places off, each up or down by chance; restored on leaving."""
    changed = [p for p in model.parameters() if p.is_floating_point()]
    draws = {device: torch.Generator(device).manual_seed(seed) for device in {p.device for p in changed}}
    with restored(changed):
        for parameter in changed:
            data = parameter.data
            unit = torch.finfo(data.dtype).eps
            signs = torch.empty_like(data).bernoulli_(generator=draws[data.device]) * 2 - 1
            parameter.data = data * (1 + (PLACES if unit < FINE else 1) * unit * signs)
        yield


@contextlib.contextmanager
def restored(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """What is put in the place of the parameters' data is taken back on leaving."""
    kept = [(parameter, parameter.data) for parameter in parameters]
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def total(loss: torch.Tensor) -> torch.Tensor:
    """The number that backward starts from: the loss, or the mean of one loss a sample."""
    options.trainable(loss)
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
        inner = unwrap(model)
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
    model = unwrap(model)
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
