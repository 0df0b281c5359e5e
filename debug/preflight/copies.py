"""Copies of a model, its optimizer and its loss that can be tried out, while the user's own stay as they are."""

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
from ..model import names

SEED = 0
"""Of the random numbers that are drawn, so that a check comes to the same each time."""


@dataclass
class Copy:
    """A model, its loss and its optimizer, and the batch to try them with."""

    model: nn.Module
    loss: Callable[..., Any]
    optimizer: Optimizer | None
    batch: Any

    def compute(self) -> torch.Tensor:
        """The loss of the batch, a tensor of no dimensions.

        Raises:
            InputError: the loss is no tensor.
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
                "a tensor: one number, or one a sample",
                "a model's whole output, or a number from .item(), was returned",
                "return the tensor that backward() is called on, for instance output.loss",
            )
        return loss.mean() if loss.ndim else loss


@dataclass(frozen=True)
class Original:
    """What the user has."""

    model: nn.Module
    loss: Callable[..., Any]
    optimizer: Optimizer | None
    batch: Any

    @classmethod
    def of(cls, model: nn.Module, loss: Any, optimizer: Optimizer | None, batch: Any) -> Original:
        """``model`` may be in the wrappers of DDP and torch.compile."""
        return cls(names.root(model), loss, optimizer, batch)

    @property
    def trained(self) -> int:
        """Elements of parameters that are trained."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def targets(self) -> int:
        """Numbers that the model is to learn; samples where the targets are not known."""
        if takes_model(self.loss):
            try:
                return batches.length(self.batch)
            except InputError:
                return 1
        leaves = batches.leaves(pair(self.batch)[1])
        return sum(leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor))

    def copy(self) -> Copy:
        """Copies in the state that the originals are in, the model in training.

        Raises:
            InputError: they cannot be copied.
        """
        criterion = self.loss if isinstance(self.loss, nn.Module) else None
        try:  # together: the optimizer's copy holds the copied parameters
            memo: dict[int, Any] = {}
            model, optimizer, loss = copy.deepcopy((self.model, self.optimizer, criterion), memo)
            for key, value in vars(self.optimizer).items() if optimizer is not None else ():
                if key not in vars(optimizer) and not callable(
                    value
                ):  # which Optimizer's own copy leaves out
                    vars(optimizer)[key] = copy.deepcopy(value, memo)
        except Exception as error:
            raise InputError(
                f"a model or optimizer that cannot be copied: {error!r}",
                "what copy.deepcopy takes",
                "it keeps a tensor of an earlier forward pass, a lock or a file",
                "call check before training begins",
            ) from error
        if not model.training:
            model.train()
        for group in optimizer.param_groups if optimizer is not None else ():
            if "initial_lr" in group:  # a scheduler's warmup begins near zero
                group["lr"] = copy.deepcopy(group["initial_lr"])
        return Copy(model, self.loss if loss is None else loss, optimizer, self.batch)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Nothing that is done inside shows: random states, and the original where the loss refers to it.

        Not by ``preserve``, inside of which a ``Watch`` looks away.
        """
        state = random_state.get()
        grads = [(parameter, parameter.grad) for parameter in self.model.parameters()]
        buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            for parameter, _ in grads:
                parameter.grad = None
            torch.manual_seed(SEED)
            with torch.enable_grad():
                yield
        finally:
            for parameter, grad in grads:
                parameter.grad = grad
            for buffer, kept in buffers:
                buffer.data.copy_(kept)
            for module, training in modes:
                module.training = training
            random_state.set(state)


def cloned(batch: Any) -> Any:
    """Models may change their input in place."""
    return batches.map_tensors(lambda tensor: tensor.detach().clone(), batch)


@dataclass
class Taken:
    """What the model was called with, and what it gave: of its first call in a step."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    output: Any = None
    called: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """Arguments by position or name, without the targets that models of Hugging Face take as well."""
        named = {str(place): value for place, value in enumerate(self.args)} | dict(self.kwargs)
        return {name: value for name, value in named.items() if "label" not in name and "target" not in name}

    def changed(self, name: str, value: Any) -> Taken:
        """With another value of one field."""
        return self.changed_all({name: value})

    def changed_all(self, values: Mapping[str, Any]) -> Taken:
        args = tuple(values.get(str(place), value) for place, value in enumerate(self.args))
        return Taken(args, {key: values.get(key, value) for key, value in self.kwargs.items()})


@contextlib.contextmanager
def recorded(model: nn.Module) -> Iterator[Taken]:
    """The model's first call inside."""
    taken = Taken()

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not taken.called:
            taken.called = True
            taken.args, taken.kwargs = cloned(args), cloned(kwargs)

    def after(_: Any, __: Any, output: Any) -> None:
        if taken.output is None:
            taken.output = output

    hooks = on_call(model, before), on_return(model, after)
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether ``step`` has to be given a function that computes the loss again."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty
