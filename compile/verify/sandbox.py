"""Forward and backward passes that leave no trace in the model, its gradients and the random states."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from loopwise import batch as batches
from loopwise import random_state
from loopwise.preserve import preserve
from loopwise.wrappers import unwrap

from ..options import scalar_loss
from ..spec import Compute

Observed = dict[str, torch.Tensor]
"""Tensors of one pass by name: ``loss``, ``gradient/<parameter>``, ``buffer/<buffer>``."""
LAST_PLACES = 4
"""Units in the last place by which a perturbation moves float32 weights, about as much as another order of
additions does; weights of lower precision are moved by one."""
FLOAT32 = 1e-6
"""Dtypes whose unit in the last place is below this are float32 and float64."""


@contextlib.contextmanager
def sandbox(model: nn.Module) -> Iterator[None]:
    """Restore everything that a forward and backward pass changes: gradients, buffers, modes and random states.

    Inside, the gradients are ``None`` at first and DDP does not communicate.
    """
    with restored("grad", model.parameters()), preserve(model), _without_communication(model):
        for parameter in model.parameters():
            parameter.grad = None
        yield


@contextlib.contextmanager
def _without_communication(model: nn.Module) -> Iterator[None]:
    """Keep DDP from communicating: one rank may compare its step while the other ranks do not."""
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    with model.no_sync(), restored("require_forward_param_sync", [model]):
        model.require_forward_param_sync = False
        yield


@contextlib.contextmanager
def perturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """Move each weight of the model a few last places up or down at random; restore the weights on leaving."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    draws = {device: torch.Generator(device).manual_seed(seed) for device in {p.device for p in parameters}}
    with restored("data", parameters):
        for parameter in parameters:
            data = parameter.data
            unit = torch.finfo(data.dtype).eps
            signs = torch.empty_like(data).bernoulli_(generator=draws[data.device]) * 2 - 1
            parameter.data = data * (1 + (LAST_PLACES if unit < FLOAT32 else 1) * unit * signs)
        yield


@contextlib.contextmanager
def restored(attribute: str, owners: Iterable[Any]) -> Iterator[None]:
    """Restore an attribute of each owner on leaving."""
    values = [(owner, getattr(owner, attribute)) for owner in owners]
    try:
        yield
    finally:
        for owner, value in values:
            setattr(owner, attribute, value)


def observe(compute: Compute, model: nn.Module, batch: Any) -> Observed:
    """Run one forward and backward pass in a sandbox and return its loss, gradients and buffers."""
    return observe_draws(compute, model, batch)[0]


def observe_draws(compute: Compute, model: nn.Module, batch: Any) -> tuple[Observed, bool]:
    """Return the result of ``observe``, and whether the pass drew random numbers."""
    with sandbox(model):
        before = _random_states()
        loss = scalar_loss(compute(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        drew = before != _random_states()
        observed = {"loss": loss.detach().clone()}
        inner = unwrap(model)
        for name, parameter in inner.named_parameters():
            if parameter.grad is not None:
                observed[f"gradient/{name}"] = parameter.grad.detach().clone()
        observed |= {f"buffer/{name}": buffer.detach().clone() for name, buffer in inner.named_buffers()}
    return observed, drew


def _random_states() -> list[Any]:
    """Return the random states of Python, NumPy, torch and its devices as values that can be compared."""
    leaves = batches.leaves(random_state.get())
    return [leaf.tolist() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]


def training_pass(compute: Compute, model: nn.Module, batch: Any) -> Callable[[], None]:
    """Return a function that runs a forward and backward pass, to be timed inside a sandbox."""
    parameters = list(model.parameters())

    def run() -> None:
        for parameter in parameters:
            parameter.grad = None
        scalar_loss(compute(batch)).backward()  # type: ignore[no-untyped-call]

    return run


def float64_copies(model: nn.Module, loss: Any, batch: Any) -> tuple[nn.Module, Any, Any]:
    """Return copies of all three in float64; the model's copy is without DDP's wrapper and without gradients."""
    model = unwrap(model)
    with sandbox(model):  # without gradients, which deepcopy would copy
        model = copy.deepcopy(model).double()
    loss = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
    return model, loss, batches.map_tensors(lambda t: t.double() if t.is_floating_point() else t, batch)
