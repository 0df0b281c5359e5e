"""Memory format of convolution weights, and of the optimizer's state beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from loopwise.preserve import restored
from loopwise.wrappers import unwrap

from .spec import StepSpec


def obstacle(spec: StepSpec) -> str:
    """Return the reason why the weights' layout must stay; empty if it may change.

    DDP's buckets keep the strides that gradients had when they were made.  State that is not reached through the
    optimizer of the step would stay behind in the old layout, where fused updates walk over it in memory order.
    """
    if unwrap(spec.model) is not spec.model:
        return "DDP's buckets keep the strides of the gradients"
    if spec.optimizer is None:
        return "the optimizer's state, which a framework holds, would keep the old layout"
    return ""


@contextlib.contextmanager
def in_layout(model: nn.Module, layout: str) -> Iterator[None]:
    """Bring the model's convolution weights into ``layout``; restore their layouts on leaving."""
    with restored("data", model.parameters()):
        _convert(model, layout)
        yield


@contextlib.contextmanager
def in_plain_layout(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Bring weights and the optimizer's state into contiguous layout; the caller restores the state's entries."""
    with restored("data", model.parameters()):
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()
        align_state(optimizer)
        yield


def set_layout(model: nn.Module, optimizer: Optimizer | None, layout: str) -> None:
    """Bring the model's convolution weights and the optimizer's state of them into ``layout``, in place."""
    _convert(model, layout)
    if layout != "as_is" and optimizer is not None:
        align_state(optimizer)


def align_state(optimizer: Optimizer) -> None:
    """Bring the state of each parameter into the parameter's strides; a loaded checkpoint may have others."""
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, Tensor) and parameter.ndim == 4:
            for name, value in state.items():
                same_shape = isinstance(value, Tensor) and value.shape == parameter.shape
                if same_shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def has_convolutions_to_convert(model: nn.Module) -> bool:
    """Return whether the weight of a convolution over images is not in channels_last layout yet."""
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    return any(not weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def _convert(model: nn.Module, layout: str) -> None:
    for parameter in model.parameters():
        if layout == "channels_last" and parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
