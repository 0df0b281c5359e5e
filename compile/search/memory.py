"""Search for a variant of a training step that stays within a memory budget."""

from __future__ import annotations

import torch

from loopwise.errors import InputError
from loopwise.ranks import from_main

from ..verify.sandbox import Observed
from .candidates import Candidate
from .trials import Trials

SEGMENTED = (0.5, 0.25, 0.0)
"""Shares of activations that captured graphs hold, in the order in which they are tried; the last is the least."""
COMPILED = (0.5, 0.15)
"""The same for Inductor, inside each repeated block.  A whole graph gets only the first: Inductor computes everything
again at once, so that a graph with a smaller share holds more."""


def refuse_impossible(budget: int, observed: Observed) -> None:
    """Refuse a budget that the gradients alone exceed.  Collective under DDP.

    Args:
        budget: bytes that forward and backward may hold.
        observed: tensors of an eager pass.

    Raises:
        InputError: the gradients, which are all held at the end of each backward pass, take more bytes.
    """
    held = sum(_bytes(value) for name, value in observed.items() if name.startswith("gradient/"))
    gradients = from_main(lambda: held)  # sparse ones differ from rank to rank
    if gradients > budget:
        raise InputError(
            f"a memory budget of {_mib(budget)}",
            f"at least {_mib(gradients)}",
            "the gradients of the parameters alone take that much, and all are held when a backward pass ends",
            "raise the budget, or train fewer parameters",
        )


def _bytes(tensor: torch.Tensor) -> int:
    parts = [tensor]
    if tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        parts = [tensor.indices(), tensor.values()]
    return sum(part.nbytes for part in parts)


def try_segments(trials: Trials, passes: tuple[str, ...], budget: int) -> list[Candidate]:
    """Try captured graphs that compute segments again, with the passes and without, until one fits.

    These need no compiler, so they show within seconds what can be reached.
    """
    tried: list[Candidate] = []
    for share in SEGMENTED:
        for some in dict.fromkeys((passes, ())):
            tried.append(trials.attempt(graph="captured", passes=some, budget=share))
            trials.measure_peaks(tried)
        if fitting(tried, budget):
            break
    return tried


def try_compiled(trials: Trials, passes: tuple[str, ...], budget: int, insist: bool) -> list[Candidate]:
    """Try Inductor's graphs that compute values again, until one fits; ``insist`` as for ``Trials.attempt``."""
    tried: list[Candidate] = []
    for share in COMPILED:
        tried.append(trials.attempt(insist, graph="inductor", passes=passes, budget=share, regions=True))
        trials.measure_peaks(tried)
        if fitting(tried, budget) or not tried[-1].plan.regions:
            break
    return tried


def fitting(candidates: list[Candidate], budget: int) -> list[Candidate]:
    """Return the measured candidates within a budget.  Collective under DDP: rank 0's measurements decide."""
    inside = from_main(lambda: [0 < one.peak <= budget for one in candidates])
    return [one for one, fits in zip(candidates, inside, strict=True) if fits and one.compute is not None]


def nothing_fits(candidates: list[Candidate], budget: int) -> InputError:
    """Return the error of a budget that no candidate meets."""
    measured = [one for one in candidates if one.compute is not None and one.peak]
    least = min(measured, key=lambda one: one.peak)
    skipped = any(one.refused.startswith("not tried") for one in candidates)
    return InputError(
        f"a memory budget of {_mib(budget)}",
        f"more for a batch of this size: the least that was found is {_mib(least.peak)}, by {least.plan}",
        f"{len(measured)} variants were measured, among them some that compute activations again",
        "raise the budget, or take a smaller batch" + (", or raise max_seconds" if skipped else ""),
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f} MiB"
