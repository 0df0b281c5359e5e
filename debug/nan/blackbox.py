"""The last steps of a run, written out when something goes wrong.

Format.  ``debug/blackbox/step<n>.rank<r>.pt``, a file of ``torch.save`` that ``weights_only=True`` loads: ``step``,
``calls`` (what each model was called with in the last steps, oldest first, with the random states before it and the
gradients that came back to its outputs) and ``weights`` (state_dict by the key of each model; of a NaN those that its
step began with).  ``weights`` is null where they are larger than 2 GiB, or are sharded.  The file is there as a
whole, or not at all.
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
from loopwise.run import Run
from loopwise.wrappers import is_sharded

from ..model.names import device, root
from .calls import Call

WEIGHTS = 2 * 2**30
"""Bytes of weights that are not written any more."""
PLAIN = (int, float, str, bool, type(None))


def write(run: Run, step: int, calls: Iterable[Call], models: Mapping[str, nn.Module]) -> str:
    """Write the calls and the weights as they are now; gives the path in the run's folder."""
    name = f"debug/blackbox/step{step}.rank{rank()}.pt"
    box = {"step": step, "calls": [_record(call) for call in calls], "weights": _weights(models)}
    data = io.BytesIO()
    torch.save(box, data)
    target = f"{run.path}/{name}"
    run.fs.makedirs(os.path.dirname(target), exist_ok=True)
    if not run.local:
        run.fs.pipe_file(target, data.getvalue())
        return name
    with open(f"{target}.new", "wb") as file:
        file.write(data.getbuffer())
    os.replace(f"{target}.new", target)
    return name


def load(path: str | os.PathLike[str], model: nn.Module | Mapping[str, nn.Module]) -> tuple[int, list[Call]]:
    """The step of a black box and its calls; its weights go into the model.

    Raises:
        InputError: there is no such file, it is none, or its weights are not those of the model.
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
            "a wrong path, or a model of other layers or under another name",
            "take the path from the finding, and build the model as the run did",
        ) from error
    return step, calls


def _call(record: dict[str, Any], to: torch.device) -> Call:
    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(to).requires_grad_(tensor.requires_grad)

    tensors = {key: batch.map_tensors(move, record[key]) for key in ("args", "kwargs", "gradients")}
    return Call(**{**record, **tensors, "autocast": tuple(record["autocast"])})


def _record(call: Call) -> dict[str, Any]:
    found = {f.name: getattr(call, f.name) for f in fields(call) if not f.name.startswith("_")}
    return {
        **found,
        **{key: _plain(found[key]) for key in ("args", "kwargs")},
        "gradients": _cpu(call.gradients),
    }


def _cpu(gradients: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    return {place: gradient.cpu() for place, gradient in gradients.items()}


def _plain(value: Any) -> Any:
    """Containers as tuples, lists and dicts, tensors on the CPU, and what else there is by its name."""
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
