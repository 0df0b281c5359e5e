"""Validation of a training step's arguments and of the losses that it computes."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise import validate
from loopwise.errors import InputError
from loopwise.torch_internals import original
from loopwise.wrappers import innermost, is_sharded

from .plan import PRECISIONS, Plan

AUTOTUNE = ("off", "default", "max")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def validate_model(model: Any) -> None:
    """Refuse a model that a training step cannot compile."""
    cause = "the model's parameters or another argument was passed in the place of the model"
    fix = "pass the model itself: TrainStep(model, loss, optimizer)"
    validate.instance("model", model, nn.Module, "an nn.Module, or DDP's wrapper of one", fix, cause)
    if is_sharded(model):
        raise InputError(
            "a model sharded by fully_shard",
            "a model that each rank holds whole, with DDP around it or without",
            "the step compares with copies of the model, and a shard cannot be copied",
            "optimize() its blocks before fully_shard, and keep the usual loop",
        )
    if original(model) is not model:
        raise InputError(
            "a model that torch.compile wrapped",
            "the model itself",
            "the model would be compiled twice",
            "pass the model that was passed to torch.compile",
        )


def validate_loss(loss: Any) -> None:
    """Refuse a loss that cannot be called, and an optimizer in the place of the loss."""
    if not callable(loss) and isinstance(innermost(loss), Optimizer):
        raise InputError(
            f"an optimizer ({type(loss).__name__}) in the place of the loss",
            "TrainStep(model, loss, optimizer)",
            "the loss was left out, or loss and optimizer changed places",
            "pass the loss second: TrainStep(model, nn.CrossEntropyLoss(), optimizer)",
        )
    expected = "a criterion of (output, target), or a function of (model, batch) whose first parameter is named model"
    validate.function("loss", loss, expected, "loss=nn.CrossEntropyLoss()")


def validate_update(optimizer: Any, scaler: Any, clip: Any, accumulate: Any) -> None:
    """Refuse arguments of the update that cannot be used."""
    if optimizer is not None:
        cause = "a loss or a learning-rate scheduler was passed"
        fix = "pass for instance torch.optim.AdamW(model.parameters(), lr=1e-3)"
        validate.instance("optimizer", optimizer, Optimizer, "a torch.optim.Optimizer", fix, cause)
    if scaler is not None:
        expected, fix = "a torch.amp.GradScaler, or None", "pass scaler=torch.amp.GradScaler()"
        validate.instance("scaler", scaler, torch.amp.GradScaler, expected, fix, "True or a dtype was passed")
    if clip is not None:
        validate.positive_number("clip", clip, "largest norm of the gradients", 1.0)
    validate.whole_number("accumulate", accumulate, 1, "batches")


def validate_choices(precision: Any, autotune: Any) -> None:
    """Refuse values of ``precision`` and ``autotune`` that do not exist."""
    validate.one_of("precision", precision, PRECISIONS)
    validate.one_of("autotune", autotune, AUTOTUNE)


def validate_plan(plan: Any) -> None:
    """Refuse a plan that is neither ``None`` nor a ``Plan``."""
    if plan is not None:
        cause = "the plan's JSON text, or a dict of its fields, was passed"
        validate.instance("plan", plan, Plan, "a Plan", "pass Plan.from_json(text)", cause)


def without_optimizer() -> InputError:
    """Return the error of a call that needs an optimizer."""
    return InputError(
        "a training step without an optimizer",
        "TrainStep(model, loss, optimizer)",
        "the step was made for a framework that updates the weights itself",
        "pass the optimizer, or call forward(batch) and let the framework do the rest",
    )


def device_of(model: nn.Module) -> torch.device:
    """Return the one device of the model's parameters."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise InputError(
            f"parameters on {', '.join(sorted(map(str, devices)))}",
            "all parameters on one device",
            "a part of the model was not moved, or the model is split over devices",
            "model.to(device); a split model trains by its own loop",
        )
    return devices.pop() if devices else torch.device("cpu")


def scalar_loss(loss: Any) -> torch.Tensor:
    """Return the number that the backward pass starts from: the loss, or the mean of one loss a sample.

    Raises:
        InputError: ``loss`` is no tensor of shape () or (batch,), or depends on no parameter.
    """
    expected = "a tensor of one number, or of one a sample, that depends on the model's parameters"
    if isinstance(loss, torch.Tensor) and loss.ndim <= 1 and loss.numel():
        if loss.requires_grad:
            return loss.mean() if loss.ndim else loss
        cause = "parameters are frozen, or the model ran under no_grad"
        raise InputError("a loss that needs no gradient", expected, cause, "train some parameters")
    what = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"type {type(loss).__name__}"
    fix = "average over all dimensions but the first"
    raise InputError(f"a loss of {what}", expected, "losses per token or pixel", fix)


def bytes_of(memory: float | str, device: torch.device) -> int:
    """Return the bytes of a memory budget: a number of bytes, a text with a unit, or a fraction of the device's memory."""
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([KMG]?I?B?)\s*", memory.upper())
        if match and match[2] in _UNITS:
            return int(float(match[1]) * _UNITS[match[2]])
    elif not isinstance(memory, bool) and isinstance(memory, (int, float)) and memory > 0:
        if memory > 1:
            return int(memory)
        if device.type == "cuda":
            return int(memory * torch.cuda.get_device_properties(device).total_memory)
        import psutil

        return int(memory * psutil.virtual_memory().total)
    raise InputError(
        f"memory={memory!r}",
        "bytes, a text such as '6GiB' or '800MB', or a fraction of the device's memory in (0, 1]",
        "an unknown unit, or 0",
        "pass for instance memory='6GiB'",
    )
