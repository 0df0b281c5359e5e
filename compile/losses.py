"""Validation of a loss, of the values that it returns, and of the counts that weight them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise import batch as batches
from loopwise import validate
from loopwise.errors import InputError
from loopwise.loss import takes_model
from loopwise.torch_internals import is_compiled
from loopwise.wrappers import innermost

from .torch_internals import is_compiled_function

LOSS = "a criterion of (output, target), or a function of (model, batch) whose first parameter is named model"
COUNT = "a number from 0 on, or such a number as a tensor of shape ()"


def validate_loss(loss: Any) -> None:
    """Refuse a loss that cannot be called, and an optimizer in the place of the loss."""
    if not callable(loss) and isinstance(innermost(loss), Optimizer):
        raise InputError(
            f"an optimizer ({type(loss).__name__}) in the place of the loss",
            "TrainStep(model, loss, optimizer)",
            "the loss was left out, or loss and optimizer changed places",
            "pass the loss second: TrainStep(model, nn.CrossEntropyLoss(), optimizer)",
        )
    validate.function("loss", loss, LOSS, "loss=nn.CrossEntropyLoss()")
    compiled = is_compiled(loss) if isinstance(loss, nn.Module) else is_compiled_function(loss)
    if compiled:
        raise InputError(
            "a loss that torch.compile wrapped",
            "the loss itself",
            "the step compiles model and loss together, and compares with both as they run without a compiler",
            "pass the loss that was passed to torch.compile",
        )
    _validate_parameters(loss)


def _validate_parameters(loss: Any) -> None:
    """Refuse a loss that cannot be called with two values, and a module that takes the model."""
    try:
        signature = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
    except (TypeError, ValueError):  # builtins without a signature
        return
    if isinstance(loss, nn.Module) and next(iter(signature.parameters), "") == "model":
        raise InputError(
            f"a loss module whose forward takes {signature}",
            LOSS,
            "modules are called with (output, target)",
            "pass loss=lambda model, batch: module(model, batch)",
        )
    try:
        signature.bind(None, None)
    except TypeError:
        names = [p.name for p in signature.parameters.values() if p.default is inspect.Parameter.empty]
        raise InputError(
            f"loss={name_of(loss)} with the parameters {signature}",
            LOSS,
            "the batch was unpacked into several parameters, or one is missing",
            "take the batch apart inside, as in def loss(model, batch): x, y = batch"
            if len(names) != 1
            else "take the model, too: def loss(model, batch)",
        ) from None


def count_of(count: Any) -> float:
    """Return a batch's count as a number; a tensor on a GPU is waited for.

    Raises:
        InputError: no finite number from 0 on, and no tensor of shape () with one.
    """
    kind = f"a tensor of shape {tuple(count.shape)}" if isinstance(count, torch.Tensor) else repr(count)
    if isinstance(count, torch.Tensor) and not count.ndim and not count.is_complex():
        count = count.item()
    if isinstance(count, (int, float)) and not isinstance(count, bool) and 0 <= count < math.inf:
        return float(count)
    raise InputError(
        f"count={kind if isinstance(count, torch.Tensor) else repr(count)}",
        COUNT,
        "a mask instead of its sum, or a loss instead of a count",
        "pass the number of samples or tokens that the loss is the mean of: count=mask.sum()",
    )


def split_loss(result: Any) -> tuple[Any, Any]:
    """Return the loss and the count in the result of a loss function: a loss, or a pair (loss, count)."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], torch.Tensor):
        count = result[1]
        if isinstance(count, torch.Tensor):
            whole = not (
                count.ndim or count.is_floating_point() or count.is_complex() or count.dtype is torch.bool
            )
        else:
            whole = isinstance(count, (int, torch.SymInt)) and not isinstance(count, bool)
        if whole:
            return result[0], count
    return result, None


def scalar_loss(result: Any) -> torch.Tensor:
    """Return the number that the backward pass starts from: the loss, or the mean of one loss a sample.

    Args:
        result: the result of a loss function, with or without a count.

    Raises:
        InputError: the loss is no tensor of shape () or (batch,), or depends on no parameter.
    """
    loss = split_loss(result)[0]
    expected = "a tensor of one number, or of one a sample, that depends on the model's parameters"
    if isinstance(loss, torch.Tensor) and loss.ndim <= 1 and loss.numel():
        if loss.requires_grad:
            return loss.mean() if loss.ndim else loss
        cause = "parameters are frozen, or the model ran under no_grad"
        raise InputError("a loss that needs no gradient", expected, cause, "train some parameters")
    if isinstance(loss, torch.Tensor):
        raise InputError(
            f"a loss of shape {tuple(loss.shape)}",
            expected,
            "losses per token or pixel, or an empty batch",
            "average over all dimensions but the first, as in loss.flatten(1).mean(1), or over all: loss.mean()",
        )
    pair = isinstance(loss, (tuple, list))
    raise InputError(
        f"a loss of type {type(loss).__name__}: {batches.describe(loss)}",
        expected + "; or a pair of it and a count, an int or an integer tensor of shape ()" * pair,
        "the loss function returns the model's outputs, too",
        f"return the loss alone{', for instance outputs[0]' * pair}{_field_of(loss)}",
    )


def _field_of(outputs: Any) -> str:
    """Return advice on the field of a model's outputs that holds the loss, if there is one."""
    return ", outputs['loss']" if isinstance(outputs, Mapping) and "loss" in outputs else ""


def name_of(function: Any) -> str:
    """Return the name of a function, of a partial function's function, or of an object's class."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__qualname__))


@contextlib.contextmanager
def explained(model: nn.Module, loss: Any) -> Iterator[None]:
    """Turn errors of a loss that gets other arguments than it was made for into an ``InputError`` with the cure."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        if isinstance(loss, nn.Module) or takes_model(loss) or not _uses_output_as_model(model, loss, error):
            raise
        first = next(iter(inspect.signature(loss).parameters))
        raise InputError(
            f"loss={name_of(loss)}, which was called as a criterion, loss(model(input), target), and failed: {error}",
            LOSS,
            f"its first parameter is named {first}, and is meant to be the model",
            f"name it model: lambda model, batch: ..., or def loss(model, batch); {first} stands for the model's output",
        ) from error
    except RuntimeError as error:
        if not str(error).startswith("Expected target size"):  # of torch's cross-entropy
            raise
        raise InputError(
            f"targets that do not fit the model's output. {error}",
            "an output of shape (batch, classes, tokens) for targets of shape (batch, tokens)",
            "the classes are the output's last dimension",
            "def loss(model, batch): return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())",
        ) from error


def _uses_output_as_model(model: nn.Module, loss: Any, error: Exception) -> bool:
    """Return whether the code of the loss itself called an object as if it were the model, or asked it for what a model has."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code is not _code_of(loss):
        return False
    if isinstance(error, AttributeError):
        return isinstance(error.name, str) and hasattr(model, error.name)
    return "is not callable" in str(error)


def _code_of(function: Any) -> types.CodeType | None:
    """Return the code of a function, of a method, of a partial function's function, or of an object's ``__call__``."""
    while isinstance(function, functools.partial):
        function = function.func
    if not hasattr(function, "__code__") and not isinstance(function, types.MethodType):
        function = type(function).__call__
    return getattr(inspect.unwrap(function), "__code__", None)
