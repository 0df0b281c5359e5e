"""Validation of a training step's arguments, its loss excepted."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from loopwise import validate
from loopwise.errors import InputError
from loopwise.torch_internals import compiled_call, original
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
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise InputError(
            "a model with lazy layers whose weights have no shape yet",
            "a model whose weights have their shapes",
            "the model has not seen an input",
            "call model(inputs) once, before the optimizer and the training step are made",
        )
    if original(model) is not model:
        raise InputError(
            "a model that torch.compile wrapped",
            "the model itself",
            "the model would be compiled twice",
            "pass the model that was passed to torch.compile",
        )
    for name, module in model.named_modules():
        if original(module) is not module or compiled_call(module) is not None:
            raise InputError(
                f"a model that is compiled already, in {f'its module {name}' if name else 'place'}",
                "a model as it was built",
                "torch.compile, Module.compile or optimize was called before, and the parts would be compiled twice",
                "build the model anew and let the training step compile it, or keep the usual loop",
            )


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
    if needs_closure(optimizer):
        others = {"accumulate": accumulate > 1, "scaler": scaler is not None, "clip": clip is not None}
        if refused := [name for name, is_on in others.items() if is_on]:
            name = type(innermost(optimizer)).__name__
            raise InputError(
                f"{', '.join(refused)} with {name}, whose step takes a closure",
                f"{name} alone",
                f"{name} computes losses and gradients several times in an update, by calls of the closure",
                f"drop {', '.join(refused)}, or take an optimizer without a closure",
            )


def needs_closure(optimizer: Any) -> bool:
    """Return whether the optimizer's ``step`` cannot be called without a closure, as that of ``LBFGS``."""
    try:
        parameters = inspect.signature(type(innermost(optimizer)).step).parameters
    except (AttributeError, TypeError, ValueError):
        return False
    return "closure" in parameters and parameters["closure"].default is inspect.Parameter.empty


def holds_parameters(optimizer: Any, *modules: Any) -> bool:
    """Return whether the optimizer has at least one parameter of the modules; other objects are left out."""
    own = {id(p) for module in modules if isinstance(module, nn.Module) for p in module.parameters()}
    return any(id(p) in own for group in innermost(optimizer).param_groups for p in group["params"])


def validate_parameters(model: nn.Module, loss: Any, optimizer: Any) -> None:
    """Refuse an optimizer that has no parameter of the model or of the loss.

    A function may hold parameters in ways that are seen only when gradients come: the first update refuses those.
    """
    if optimizer is not None and isinstance(loss, nn.Module) and not holds_parameters(optimizer, model, loss):
        raise foreign_optimizer()


def foreign_optimizer() -> InputError:
    """Return the error of an optimizer that would train nothing."""
    return InputError(
        "an optimizer that has none of the model's parameters",
        "an optimizer of parameters that the loss depends on",
        "the optimizer was made for another model, or before the model was copied or its layers were replaced",
        "make the optimizer of this model's parameters, after the model is complete",
    )


def refuse_count(count: Any, optimizer: Any) -> None:
    """Refuse a count beside an optimizer that needs a closure: each batch is an update of its own."""
    if count is not None:
        name = type(innermost(optimizer)).__name__
        raise InputError(
            f"count={count!r} with {name}, whose step takes a closure",
            "no count",
            "counts weight the batches of an update, and this optimizer makes an update of each batch",
            "drop count=",
        )


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


def validate_gradients() -> None:
    """Refuse a training step while autograd is off."""
    if torch.is_grad_enabled():
        return
    raise InputError(
        f"a training step under torch.{'inference_mode' if torch.is_inference_mode_enabled() else 'no_grad'}()",
        "a step with gradients on",
        "the step is called in an evaluation, or in a function with that decorator",
        "call the step outside of it; for an evaluation call the model itself",
    )


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
