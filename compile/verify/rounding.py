"""Rounding of a step: what another order of additions, or another fused kernel, may change in it.

Results of operations are moved at random by as much as rounding may move them, as in Monte Carlo arithmetic (Parker,
"Monte Carlo Arithmetic", 1997).  A sum whose terms cancel moves by a multiple of its size, and one without cancellation
hardly at all: the changes tell how many digits of each tensor are determined.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..torch_internals import TorchDispatchMode
from .torch_internals import decompositions

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALVES = (torch.float16, torch.bfloat16)
"""Sums of these are added in float32."""
OFTEN = 1 / 8
"""Share of the elements of a result that move by a last place, for a standard deviation of about what rounding has."""
ONE_BY_ONE = 0.2
"""Rounding of a sum of n numbers that are added one by one, in units in the last place: about this, times the root of n,
times the size of the partial sums, if the directions of the single roundings are independent."""
EXACT = ("clone", "copy_", "detach", "cat", "stack", "zero_", "fill_", "relu", "threshold_backward")
"""Common operations without rounding; a last place in one that is missing here does no harm."""
WITH_SUMS = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "native_batch_norm_backward",
    "cudnn_batch_norm",
    "cudnn_batch_norm_backward",
    "native_layer_norm",
    "native_layer_norm_backward",
    "native_group_norm",
    "native_group_norm_backward",
    "_softmax",
    "_softmax_backward_data",
    "_log_softmax",
    "_log_softmax_backward_data",
    "nll_loss_forward",
    "nll_loss_backward",
    "mse_loss",
    "mse_loss_backward",
)
"""Operations with sums inside, whose rounding is common to many elements of a result: they run as decomposed by torch."""


class Rounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mode in which each result of an operation is moved at random, by what rounding may change.

    Some elements of a result move by a unit in the last place, and sums by the rounding of terms that are added one by one.

    Args:
        seed: seed of the directions, which are drawn from generators of their own.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seed = seed
        self._draws: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and move its results."""
        kwargs = kwargs or {}
        decomposed = _decomposed().get(func)
        if decomposed is not None:
            with self:
                return decomposed(*args, **kwargs)
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or name in EXACT:
            return result
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if (
                not isinstance(tensor, Tensor)
                or tensor.dtype not in FLOATS
                or tensor.layout is not torch.strided
            ):
                continue
            if name in ("sum", "mean") and tensor.dtype not in HALVES:
                self._move(tensor, _rounding_of_sum(name, args, tensor), 1.0)
            else:
                self._move(tensor, tensor, OFTEN)
        return result

    def _move(self, tensor: Tensor, size: Tensor, often: float) -> None:
        """Move a share of the elements up or down by a last place of their size in ``size``."""
        draw = self._draws.get(tensor.device)
        if draw is None:
            draw = self._draws[tensor.device] = torch.Generator(tensor.device).manual_seed(self._seed)
        moves = signs(tensor, draw) if often == 1 else seldom(tensor, draw, often)
        tensor.addcmul_(size, moves, value=torch.finfo(tensor.dtype).eps)


def signs(like: Tensor, draw: torch.Generator) -> Tensor:
    """Return a tensor of the shape of another one whose elements are 1 or -1 at random."""
    return torch.empty_like(like).bernoulli_(generator=draw).mul_(2).sub_(1)


def seldom(like: Tensor, draw: torch.Generator, often: float) -> Tensor:
    """Return a tensor of the shape of another one, 0 except for a share ``often`` of elements that are 1 or -1.

    Each element takes a byte of random numbers of 64 bits: a draw for each element took six times as long, and made up
    most of the time of a rounded pass.
    """
    count, edge = like.numel(), round(128 * (1 - often))
    words = torch.empty(-(-count // 8), dtype=torch.int64, device=like.device)
    drawn = words.random_(-(2**63), None, generator=draw).view(torch.int8)[:count].view(like.shape)
    return (drawn.ge(edge).view(torch.int8) - drawn.lt(-edge).view(torch.int8)).to(like.dtype)


@functools.cache
def _decomposed() -> dict[Any, Callable[..., Any]]:
    """Return the function that replaces each overload of the operations with sums inside."""
    return decompositions(WITH_SUMS)


def _rounding_of_sum(operation: str, args: tuple[Any, ...], result: Tensor) -> Tensor:
    """Return by how many last places of 1 the rounding of a sum, or of a mean, may move each element of its result."""
    terms, size = args[0], result.abs()
    if not isinstance(terms, Tensor) or not terms.is_floating_point():
        return size
    dims, keep = (args[1] if len(args) > 1 else None), len(args) > 2 and bool(args[2])
    spread: Tensor = torch.linalg.vector_norm(terms.to(result.dtype), dim=dims or None, keepdim=keep)
    count = terms.numel() // max(1, result.numel())
    spread = spread / count if operation == "mean" else spread
    return ONE_BY_ONE * math.sqrt(count) * (spread + size)
