"""Black box: a file with the last steps of a run before a NaN or another critical finding.

Format: ``debug/blackbox/step<n>.rank<r>.pt``, a file of ``torch.save`` that ``weights_only=True`` loads, with ``step``,
``calls`` and ``weights``.  ``calls`` are the calls of the models in the last steps, the oldest first, with their
arguments, the random states before the call and the gradients of the loss with respect to the outputs.  ``weights`` are
the state_dicts by the key of each model; if the reason is a NaN, those from the beginning of its step.  ``weights`` is
null if they are larger than 2 GiB or are sharded.  The file is written atomically.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import fsspec
import torch
from torch import nn

from loopwise import batch
from loopwise.errors import InputError
from loopwise.ranks import rank
from loopwise.run import Run, write_file
from loopwise.wrappers import is_sharded

from ..model.names import device, root
from .calls import Call
from .random_states import plain

WEIGHTS = 2 * 2**30
"""Bytes of weights above which they are not written."""
PLAIN = (int, float, str, bool, type(None))
"""Types that are written without conversion."""


def write(run: Run, step: int, calls: Iterable[Call], models: Mapping[str, nn.Module]) -> str:
    """Write the calls and the present weights, and return the path in the run's folder."""
    name = f"debug/blackbox/step{step}.rank{rank()}.pt"
    box = {"step": step, "calls": [_record(call) for call in calls], "weights": _weights(models)}
    data = io.BytesIO()
    torch.save(box, data)
    target = f"{run.path}/{name}"
    run.fs.makedirs(os.path.dirname(target), exist_ok=True)
    write_file(run.fs, target, data.getbuffer())
    return name


def load(path: str | os.PathLike[str], model: nn.Module | Mapping[str, nn.Module]) -> tuple[int, list[Call]]:
    """Load the weights of a black box into the model, and return its step and its calls.

    Args:
        path: path of the file.
        model: the model of the run, or several by key.

    Raises:
        InputError: the file is missing or is no black box, or its weights do not fit the model.
    """
    models = model if isinstance(model, Mapping) else {"": model}
    try:
        with fsspec.open(os.fspath(path), "rb") as file:
            box = torch.load(file, map_location="cpu", weights_only=True)
        to = device(models)
        calls = [_call(record, to) for record in box["calls"]]
        step = int(box["step"])
        for key, weights in (box["weights"] or {}).items():
            root(models[key]).load_state_dict(weights)
    except Exception as error:
        raise InputError(
            f"{os.fspath(path)}: {error}",
            "a file that a Watch wrote into debug/blackbox, and the model of that run",
            "a wrong path, or a model with other layers or another key",
            "take the path from the finding, and build the model as the run did",
        ) from error
    return step, calls


def _call(record: dict[str, Any], to: torch.device) -> Call:
    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(to).requires_grad_(tensor.requires_grad)

    tensors = {key: batch.map_tensors(move, record[key]) for key in ("args", "kwargs", "gradients")}
    return Call(**{**record, **tensors, "autocast": tuple(record["autocast"])})


def _record(call: Call) -> dict[str, Any]:
    record = {f.name: getattr(call, f.name) for f in fields(call)}
    record |= {key: _plain(record[key]) for key in ("args", "kwargs")}
    record["states"] = plain(call.states)
    return record | {"gradients": {place: gradient.cpu() for place, gradient in call.gradients.items()}}


def _plain(value: Any) -> Any:
    """Return containers as tuples, lists and dicts, tensors on the CPU, and other values by their ``repr``."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().requires_grad_(value.requires_grad)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(value[key]) for key in value}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else tuple(map(_plain, value))
    return repr(value)


def _weights(models: Mapping[str, nn.Module]) -> dict[str, Any] | None:
    if any(is_sharded(model) for model in models.values()):
        return None
    states = {key: dict(root(model).state_dict()) for key, model in models.items()}
    return None if batch.nbytes(states) > WEIGHTS else states
