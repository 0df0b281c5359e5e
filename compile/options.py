"""Checks of a training step's arguments, at the door."""

from __future__ import annotations

import re
from typing import Any

import psutil
import torch
from torch import nn
from torch.optim import Optimizer

from loopwise.errors import InputError, StateError
from loopwise.wrappers import is_sharded

from .plan import PRECISIONS, Plan, one_of

AUTOTUNE = ("off", "default", "max")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def arguments(
    model: Any, optimizer: Any, clip: Any, accumulate: Any, precision: Any, autotune: Any, plan: Any
) -> None:
    """Check what does not depend on a batch."""
    one_of("precision", precision, PRECISIONS)
    one_of("autotune", autotune, AUTOTUNE)
    if not isinstance(optimizer, Optimizer | None):
        raise InputError(
            f"an optimizer of type {type(optimizer).__name__}",
            "a torch.optim.Optimizer",
            "its class, or a learning-rate scheduler, was passed",
            "pass for instance torch.optim.AdamW(model.parameters(), lr=1e-3)",
        )
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise InputError(
            f"accumulate={accumulate!r}",
            "a whole number of batches, at least 1",
            "0 or None for 'no accumulation'",
            "pass accumulate=1",
        )
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, (int, float)) or not clip > 0):
        raise InputError(
            f"clip={clip!r}", "a positive norm, or None", "0 for 'no clipping'", "pass clip=None or clip=1.0"
        )
    if plan is not None and not isinstance(plan, Plan):
        raise InputError(
            f"a plan of type {type(plan).__name__}",
            "a Plan",
            "its text, or a dict of its fields",
            "pass Plan.from_json(text)",
        )
    if is_sharded(model):
        raise InputError(
            "a model sharded by fully_shard",
            "a model that each rank holds whole, with DDP around it or without",
            "the step compares with copies of the model, which a shard cannot make",
            "optimize() its blocks before fully_shard, and keep the usual loop",
        )
    if hasattr(model, "_orig_mod"):
        raise InputError(
            "a model that torch.compile wrapped",
            "the model itself",
            "it would be compiled twice",
            "pass the model that was given to torch.compile",
        )


def without_optimizer() -> InputError:
    return InputError(
        "a training step without an optimizer",
        "TrainStep(model, loss, optimizer)",
        "it was made for a framework that updates the weights itself",
        "pass the optimizer, or call forward(batch) and let the framework do the rest",
    )


def without_graphs(device: torch.device) -> InputError:
    return InputError(
        f"cuda_graph=True in the plan of a model on {device}",
        "a model on an NVIDIA or AMD GPU",
        "the plan was made on another machine, or the model was not moved",
        "model.to('cuda'), or plan.changed(cuda_graph=False)",
    )


def not_prepared() -> StateError:
    return StateError(
        "forward() of a training step that has no plan yet, under several ranks",
        "prepare(batch) before the first forward()",
        "finding a plan runs backward passes, which a wrapper's forward pass around it would take for its own",
        "call step.prepare(batch) where the batch starts, in Lightning in on_train_batch_start",
    )


def device_of(model: nn.Module) -> torch.device:
    """The one device of the model's parameters."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise InputError(
            f"parameters on {', '.join(sorted(map(str, devices)))}",
            "all parameters on one device",
            "a part of the model was not moved, or the model is split over devices",
            "model.to(device); a split model trains by its own loop",
        )
    return devices.pop() if devices else torch.device("cpu")


def trainable(loss: Any) -> None:
    """The loss of a batch must be one number, or one a sample, that backward can start from."""
    if isinstance(loss, torch.Tensor) and loss.ndim <= 1 and loss.numel() and loss.requires_grad:
        return
    what = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"type {type(loss).__name__}"
    flat = isinstance(loss, torch.Tensor) and loss.ndim <= 1 and loss.numel()
    raise InputError(
        "a loss that needs no gradient" if flat else f"a loss of {what}",
        "a tensor of one number, or of one a sample, that depends on the model's parameters",
        "parameters are frozen, or the model ran under no_grad" if flat else "losses per token or pixel",
        "train some parameters" if flat else "average over all dimensions but the first",
    )


def bytes_of(memory: float | str, device: torch.device) -> int:
    """Bytes from a number of them, a text with a unit, or a fraction of the device's memory."""
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([KMG]?I?B?)\s*", memory.upper())
        if match and match[2] in _UNITS:
            return int(float(match[1]) * _UNITS[match[2]])
    elif not isinstance(memory, bool) and isinstance(memory, (int, float)) and memory > 0:
        if memory > 1:
            return int(memory)
        if device.type == "cuda":
            return int(memory * torch.cuda.get_device_properties(device).total_memory)
        return int(memory * psutil.virtual_memory().total)
    raise InputError(
        f"memory={memory!r}",
        "bytes, a text such as '6GiB' or '800MB', or a fraction of the device's memory in (0, 1]",
        "another unit, or 0",
        "pass for instance memory='6GiB'",
    )
