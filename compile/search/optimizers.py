"""Other implementations of the user's optimizer: the same arithmetic in fewer, larger kernels."""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from .measure import seconds

TOLERANCE = 1e-4
"""How far an update may be from the original one, relative to the update: float32 rounding of
``weight + update`` leaves about 1e-5."""


def candidates(optimizer: Optimizer) -> list[str]:
    """Implementations that may be tried: none where the user chose one, or where there are no others."""
    groups = optimizer.param_groups
    free = all("fused" in g and not g["fused"] and g.get("foreach") is None for g in groups)
    if not free or any(group.get("differentiable") for group in groups) or _hooked(optimizer):
        return ["as_is"]
    plain = groups[0].get("foreach") is None and type(optimizer).__module__.startswith("torch.optim")
    return ["as_is", "foreach", "fused"] if plain else ["as_is"]


def _hooked(optimizer: Optimizer) -> bool:
    """Whether hooks watch the steps: a copy's steps would call them."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return any(getattr(optimizer, name, None) for name in names)


def choose(optimizer: Optimizer, kind: str) -> None:
    """Switch ``optimizer`` in place to the implementation ``kind``; its state stays.

    Where the user chose one, or there are no others, it stays as it is.
    """
    if kind == "as_is" or kind not in candidates(optimizer):
        return
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = kind == "fused", kind == "foreach"
        for parameter in group["params"]:
            step = optimizer.state.get(parameter, {}).get("step")
            if kind == "fused" and isinstance(step, torch.Tensor):
                optimizer.state[parameter]["step"] = step.to(parameter.device, torch.float32)


def twins(optimizer: Optimizer, kinds: list[str]) -> dict[str, Optimizer]:
    """Copies of ``optimizer`` with copies of its parameters, gradients and state, one of each kind.

    They have made one step.  A kind that does not run here (complex or sparse parameters, a device without it) is left out.
    """
    found: dict[str, Optimizer] = {}
    for kind in kinds:
        copied = copy.deepcopy(optimizer)
        groups = zip(optimizer.param_groups, copied.param_groups, strict=True)
        for parameter, twin in (
            (p, t) for g, h in groups for p, t in zip(g["params"], h["params"], strict=True)
        ):
            twin.grad = None if parameter.grad is None else parameter.grad.detach().clone()
        try:
            choose(copied, kind)
            copied.step()
        except (RuntimeError, NotImplementedError, ValueError):
            if kind == "as_is":
                raise
            continue
        found[kind] = copied
    return found


def disagreement(original: Optimizer, twin: Optimizer, before: Optimizer) -> float:
    """How far the updates of two copies that made one step are apart, relative to the original's."""
    parameters = [[p for group in o.param_groups for p in group["params"]] for o in (twin, original, before)]
    return distance(*parameters)


@torch.no_grad()
def distance(found: list[torch.Tensor], wanted: list[torch.Tensor], before: list[torch.Tensor]) -> float:
    """Of ``found`` from ``wanted``, all together, relative to that of ``before``; infinite where they differ and nothing moved."""
    apart = moved = 0.0
    for one, other, start in zip(found, wanted, before, strict=True):
        exact = other.double()  # of bool there is no difference
        apart += (exact - one.double()).square().sum().item()
        moved += (exact - start.double()).square().sum().item()
    return (apart / moved) ** 0.5 if moved else float("inf" if apart else 0)


@dataclass(frozen=True)
class Choice:
    """What measuring the implementations of an optimizer found."""

    kind: str
    seconds: dict[str, list[float]]
    refused: dict[str, str]
    """Kind -> why it was not taken into account."""


def measured(optimizer: Optimizer, device: torch.device) -> Choice:
    """Time the implementations on copies and check that they agree; the optimizer itself stays as it is.

    To be called when gradients are there.  Copies need as much memory as parameters, gradients and
    state together, once for each kind; where there is not as much, nothing is changed.
    """
    kinds = candidates(optimizer)
    if kinds == ["as_is"]:
        return Choice("as_is", {}, {})
    try:
        copies = twins(optimizer, kinds)
    except torch.OutOfMemoryError:
        return Choice("as_is", {}, {"others": "no memory for copies to compare"})
    refused = {kind: "does not run here" for kind in kinds if kind not in copies}
    for kind in list(copies)[1:]:
        apart = disagreement(copies["as_is"], copies[kind], optimizer)
        if not apart <= TOLERANCE:
            refused[kind] = f"its update is off by {apart:.2g}"
            del copies[kind]
    times = seconds({kind: twin.step for kind, twin in copies.items()}, device)
    best = min(times, key=lambda kind: statistics.median(times[kind]))
    return Choice(best, times, refused)
