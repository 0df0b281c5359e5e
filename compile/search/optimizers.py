"""Implementations of the user's optimizer: the same arithmetic in fewer, larger kernels."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from loopwise.ranks import anywhere

from ..verify.errors import update_error
from .measure import median, seconds

TOLERANCE = 1e-4
"""Largest relative error of an update: float32 rounding of ``weight + update`` leaves about 1e-5."""


def implementations(optimizer: Optimizer) -> list[str]:
    """Return the implementations that may be tried; only ``as_is`` if the user chose one or there are no others."""
    groups = optimizer.param_groups
    free = all("fused" in g and not g["fused"] and g.get("foreach") is None for g in groups)
    if not free or any(g.get("differentiable") for g in groups):
        return ["as_is"]
    of_torch = groups[0].get("foreach") is None and type(optimizer).__module__.startswith("torch.optim")
    return ["as_is", "foreach", "fused"] if of_torch else ["as_is"]


def switch(optimizer: Optimizer, implementation: str) -> None:
    """Switch ``optimizer`` in place to an implementation; its state stays.

    The optimizer stays as it is if the user chose an implementation, or if there are no others.
    """
    if implementation == "as_is" or implementation not in implementations(optimizer):
        return
    fused = implementation == "fused"
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = fused, not fused
        for parameter in group["params"]:
            step = optimizer.state.get(parameter, {}).get("step")
            if fused and isinstance(step, torch.Tensor):
                optimizer.state[parameter]["step"] = step.to(parameter.device, torch.float32)


def stepped_copies(optimizer: Optimizer, names: list[str]) -> dict[str, Optimizer]:
    """Copy ``optimizer`` once for each implementation, with parameters, gradients and state, and make two steps.

    The copies have no hooks (a deep copy drops them), those of a ``Watch`` among them, which cost each implementation the same.
    The second step works on the state that the first one made.  An implementation that does not run here (complex or sparse parameters, a device without it) is left out.
    """
    copies: dict[str, Optimizer] = {}
    for name in names:
        copied = copy.deepcopy(optimizer)
        for group, copied_group in zip(optimizer.param_groups, copied.param_groups, strict=True):
            for parameter, twin in zip(group["params"], copied_group["params"], strict=True):
                twin.grad = None if parameter.grad is None else parameter.grad.detach().clone()
        try:
            switch(copied, name)
            for _ in range(2):
                copied.step()
            copies[name] = copied
        except (RuntimeError, NotImplementedError, ValueError):
            if name == "as_is":
                raise
    return copies


NO_MEMORY = "no memory for copies to compare"


@dataclass(frozen=True)
class Choice:
    """Result of the comparison of an optimizer's implementations."""

    name: str
    """The fastest correct implementation."""
    seconds: dict[str, list[float]]
    """Implementation -> seconds of its steps."""
    refused: dict[str, str]
    """Implementation -> reason why it was not timed."""


def choose_implementation(optimizer: Optimizer, device: torch.device) -> Choice:
    """Time an optimizer's implementations on copies, compare their updates and choose the fastest correct one.

    The gradients must exist; the optimizer itself stays as it is.  The copies need as much memory as parameters,
    gradients and state together, once for each implementation.  If there is too little memory, nothing is changed.
    """
    names = implementations(optimizer)
    if names == ["as_is"]:
        return Choice("as_is", {}, {})
    try:
        copies, refused = _compared(optimizer, names)
    except torch.OutOfMemoryError:
        return Choice("as_is", {}, {"others": NO_MEMORY})
    times = seconds({name: copied.step for name, copied in copies.items()}, device)
    best = min(times, key=lambda name: median(times[name]))
    return Choice(best, times, refused)


def compared_implementation(optimizer: Optimizer, name: str) -> Choice:
    """Compare a plan's implementation with the user's on copies; choose the user's if the updates differ on any rank.

    The gradients must exist.  In a process group, every rank has to call this function.
    """
    refused = {}
    if name in implementations(optimizer):
        try:
            refused = _compared(optimizer, ["as_is", name])[1]
        except torch.OutOfMemoryError:
            refused = {name: NO_MEMORY}
    else:
        refused = {name: "the user chose an implementation, or there are no others"}
    if anywhere(bool(refused)):
        return Choice("as_is", {}, refused or {name: "refused on another rank"})
    return Choice(name, {}, {})


def _compared(optimizer: Optimizer, names: list[str]) -> tuple[dict[str, Optimizer], dict[str, str]]:
    """Return the stepped copies whose updates are right, and the reasons why the others were refused."""
    copies = stepped_copies(optimizer, names)
    refused = {name: "does not run here" for name in names if name not in copies}
    before = _parameters(optimizer)
    for name in list(copies)[1:]:
        error = update_error(_parameters(copies[name]), _parameters(copies["as_is"]), before)
        if not error <= TOLERANCE:
            refused[name] = f"its update is off by {error:.2g}"
            del copies[name]
    return copies, refused


def _parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
