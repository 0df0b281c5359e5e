"""Copies of a model, its optimizer and its loss, which the preflight trains instead of the user's own."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise import batch as batches
from loopwise import random_state
from loopwise.errors import InputError
from loopwise.loss import pair, takes_model

from ..hooks.forward import on_call, on_return

SEED = 0
"""Seed of all random numbers, so that a repeated preflight gives the same report."""


def seed_all(seed: int) -> None:
    """Seed the generators of the CPU and of GPUs that are in use; ``torch.manual_seed`` without CUDA costs more."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)


@dataclass
class Setup:
    """A model without its wrappers, its loss and its optimizer, and the batch that they are tried out on."""

    model: nn.Module
    loss: Callable[..., Any]
    optimizer: Optimizer | None
    batch: Any
    shape: tuple[int, ...] = ()
    """Shape of the last computed loss, before its mean is taken."""

    def compute(self) -> torch.Tensor:
        """Return the loss of the batch, a tensor without dimensions.

        Raises:
            InputError: the loss is not a tensor.
        """
        batch = cloned(self.batch)
        if takes_model(self.loss):
            loss = self.loss(self.model, batch)
        else:
            inputs, targets = pair(batch)
            loss = self.loss(self.model(inputs), targets)
        if not isinstance(loss, torch.Tensor):
            raise InputError(
                f"a loss of type {type(loss).__name__}",
                "a tensor: one number, or one number for each sample",
                "the loss returned the model's whole output, or a number from .item()",
                "return the tensor that backward() is called on, for instance output.loss",
            )
        self.shape = tuple(loss.shape)
        return loss.mean() if loss.ndim else loss

    @property
    def trained(self) -> int:
        """Number of elements of the trained parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def targets(self) -> int:
        """Number of target values that the model is to learn; number of samples if the targets are unknown."""
        if takes_model(self.loss):
            try:
                return batches.length(self.batch)
            except InputError:
                return 1
        leaves = batches.leaves(pair(self.batch)[1])
        return sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))

    def copy(self) -> Setup:
        """Return a copy in the state of the original, with the model in training mode.

        Raises:
            InputError: the model or the optimizer cannot be copied.
        """
        criterion = self.loss if isinstance(self.loss, nn.Module) else None
        try:  # one call for all, so that the copied optimizer holds the copied parameters
            memo: dict[int, Any] = {}
            model, optimizer, loss = copy.deepcopy((self.model, self.optimizer, criterion), memo)
            for key, value in vars(self.optimizer).items() if optimizer is not None else ():
                # Optimizer's own copy leaves these out
                if key not in vars(optimizer) and not callable(value):
                    vars(optimizer)[key] = copy.deepcopy(value, memo)
        except Exception as error:
            raise InputError(
                f"a model or optimizer that cannot be copied: {error!r}",
                "a model and an optimizer that copy.deepcopy can copy",
                "one of them keeps a tensor of an earlier forward pass, a lock or a file",
                "call preflight before training begins",
            ) from error
        if not model.training:
            model.train()
        for group in optimizer.param_groups if optimizer is not None else ():
            if "initial_lr" in group:  # a scheduler's warmup begins near zero
                group["lr"] = copy.deepcopy(group["initial_lr"])
        return Setup(model, self.loss if loss is None else loss, optimizer, self.batch)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Restore random states afterwards, and the original model, which the loss may use.

        ``loopwise.preserve`` is not used for this, because a ``Watch`` does not observe what runs inside it.
        """
        state = random_state.get()
        grads = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            for parameter, _ in grads:
                parameter.grad = None
            seed_all(SEED)
            with torch.enable_grad():
                yield
        finally:
            for parameter, grad in grads:
                parameter.grad = grad
            for buffer, value in buffers:
                buffer.data.copy_(value)
            for module, training in modes:
                module.training = training
            random_state.set(state)


def cloned(batch: Any) -> Any:
    """Return a copy of the batch, since models may change their input in place."""
    return batches.map_tensors(lambda tensor: tensor.detach().clone(), batch)


@dataclass
class RecordedCall:
    """Arguments and output of the model's first call in a step."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    output: Any = None
    called: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """Arguments by position or name, without the targets that models of Hugging Face take as well."""
        named = {str(place): value for place, value in enumerate(self.args)} | dict(self.kwargs)
        return {name: value for name, value in named.items() if "label" not in name and "target" not in name}

    def exchanged(self, leaf: torch.Tensor, other: torch.Tensor) -> RecordedCall:
        """Return a call with another tensor in place of one of its own."""
        args, kwargs = batches.map_tensors(
            lambda tensor: other if tensor is leaf else tensor, (self.args, dict(self.kwargs))
        )
        return RecordedCall(args, kwargs)

    def changed(self, values: Mapping[str, Any]) -> RecordedCall:
        """Return a call with other values of some fields."""
        args = tuple(values.get(str(place), value) for place, value in enumerate(self.args))
        return RecordedCall(args, {key: values.get(key, value) for key, value in self.kwargs.items()})


@contextlib.contextmanager
def recorded(model: nn.Module) -> Iterator[RecordedCall]:
    """Record the model's first call inside the ``with`` block."""
    call = RecordedCall()

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not call.called:
            call.called = True
            call.args, call.kwargs = cloned(args), cloned(kwargs)

    def after(_: Any, __: Any, output: Any) -> None:
        if call.output is None:
            call.output = output

    hooks = on_call(model, before), on_return(model, after)
    try:
        yield call
    finally:
        for hook in hooks:
            hook.remove()


def needs_closure(optimizer: Optimizer) -> bool:
    """Return whether ``step`` must be called with a function that computes the loss again."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
