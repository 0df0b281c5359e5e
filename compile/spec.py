"""Specification of a training step: its validated arguments, its eager computation and its update."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise import validate
from loopwise.devices import native_dtype
from loopwise.loss import pair, takes_model
from loopwise.wrappers import innermost, unwrap

from . import losses, options

Tell = Callable[[str], None]
"""Function that takes a line for ``explain()``."""
Compute = Callable[[Any], torch.Tensor]
"""Computation from a batch to its loss, of shape () or (batch,), or to a pair of it and the batch's count."""


def eager_computation(model: nn.Module, loss: Callable[..., torch.Tensor], precision: str) -> Compute:
    """Return the computation of a batch's loss as the user would write it."""
    device = options.device_of(model)
    dtype = native_dtype(device) if precision == "mixed" else torch.float32
    with_model = takes_model(loss)

    def compute(batch: Any) -> torch.Tensor:
        if with_model:
            return loss(model, batch)
        inputs, targets = pair(batch)
        return loss(model(inputs), targets)

    def compute_in_low_precision(batch: Any) -> torch.Tensor:
        with torch.autocast(device.type, dtype=dtype):
            return compute(batch)

    return compute if dtype is torch.float32 else compute_in_low_precision


@dataclass(frozen=True, eq=False)
class StepSpec:
    """Validated arguments of a ``TrainStep``, which the search and the CUDA graph get instead of the step.

    Raises:
        InputError: an argument cannot be used.
    """

    model: nn.Module
    loss: Callable[..., torch.Tensor]
    wrapper: Any
    """The optimizer as the user passed it: torch's, a framework's wrapper of it, or ``None``."""
    scaler: Any
    clip: float | None
    accumulate: int
    precision: str
    autotune: str
    memory: Any
    """Bytes that forward and backward may hold beside the parameters; ``None``: no limit."""
    max_seconds: float | None = None
    """Seconds that the search for a plan may take; ``None``: what a run can repay."""

    def __post_init__(self) -> None:
        options.validate_model(self.model)
        losses.validate_loss(self.loss)
        options.validate_update(self.wrapper, self.scaler, self.clip, self.accumulate)
        options.validate_choices(self.precision, self.autotune)
        if self.max_seconds is not None:
            validate.positive_number("max_seconds", self.max_seconds, "number of seconds", 60)
        if self.memory is not None:
            object.__setattr__(self, "memory", options.bytes_of(self.memory, self.device))

    @functools.cached_property
    def device(self) -> torch.device:
        """Device of all parameters."""
        return options.device_of(self.model)

    @functools.cached_property
    def eager(self) -> Compute:
        """Computation of the step as the user would write it."""
        return eager_computation(self.model, self.loss, self.precision)

    @property
    def optimizer(self) -> Optimizer | None:
        """Optimizer of torch, without a framework's wrapper."""
        return innermost(self.wrapper)  # type: ignore[no-any-return]

    def copied(self) -> StepSpec:
        """Return the specification of a step with copies of model and optimizer, for training on the side."""
        # in one call: the optimizer's copy must hold the copied parameters
        model, optimizer = copy.deepcopy((unwrap(self.model), self.optimizer))
        return dataclasses.replace(self, model=model, wrapper=optimizer)

    @functools.cached_property
    def needs_closure(self) -> bool:
        """``True`` if the optimizer calls a closure for losses and gradients, as ``LBFGS`` does."""
        return options.needs_closure(self.wrapper)

    def backward(self, loss: torch.Tensor, weight: float | None = None) -> None:
        """Run the backward pass of one batch.

        Args:
            loss: the batch's loss, shape ().
            weight: factor of the loss in an update; ``None``: an equal share.
        """
        if weight is not None:
            loss = loss * weight
        elif self.accumulate > 1:
            loss = loss / self.accumulate
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def update(self, keep_gradients: bool = False) -> None:
        """Clip the gradients, update the parameters and zero the gradients.

        Args:
            keep_gradients: fill the gradients with zeros instead of dropping them.
        """
        assert self.optimizer is not None
        if self.clip is not None:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.clip)
        if self.scaler is None:
            self.wrapper.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.wrapper.zero_grad(set_to_none=not keep_gradients)
