"""The same pass in float64, on the user's own objects and with the same random draws.

All tensors that the pass calculates with get float64 data for its duration, those of the loss, of attributes and of
closures included: a copy of the model would miss what functions hold.  Random operations draw in the dtype of the
ordinary pass, since a float64 draw would take other numbers from the generator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from loopwise import batch as batches

from ..spec import eager_computation
from ..torch_internals import TorchDispatchMode, argument_names, with_hooks_of
from .sandbox import Observed, Sandbox

DOUBLE = {torch.complex64: torch.complex128, torch.complex32: torch.complex128}


def observe_in_float64(sandbox: Sandbox) -> Observed:
    """Return the tensors of the eager pass in float64.

    Raises:
        Exception: an operation has no float64, or mixes dtypes after the conversion.
    """
    spec, low = sandbox.spec, _drawn_dtype(sandbox.weights())
    exact = eager_computation(spec.model, spec.loss, "exact")

    def compute(batch: Any) -> Tensor:
        # inside the sandbox, which restores the data of all tensors, and the tensors in all containers
        twins = _convert(sandbox)
        with _default_dtype(torch.float64), DrawsIn(low):
            return exact(batches.map_tensors(lambda tensor: twins.get(id(tensor), tensor), batch))

    return sandbox.observe(compute)


def _drawn_dtype(weights: list[Tensor]) -> torch.dtype:
    """Return the dtype in which the ordinary pass draws: that of the weights."""
    kinds = {weight.dtype for weight in weights if weight.is_floating_point()}
    return kinds.pop() if len(kinds) == 1 else torch.float32


def _convert(sandbox: Sandbox) -> dict[int, Tensor]:
    """Give each strided tensor float64 data, or a twin if it needs a gradient; return the twins by identity.

    Data of another dtype would make autograd drop the node that accumulates a tensor's gradient, and with it the hooks
    by which DDP averages gradients.
    """
    twins = {}
    for tensor in sandbox.reachable.floating:
        if tensor.layout != torch.strided:
            continue
        data = tensor.data.to(DOUBLE.get(tensor.dtype, torch.float64))
        if tensor.is_leaf and tensor.requires_grad:
            twins[id(tensor)] = with_hooks_of(tensor, data.requires_grad_())
        else:
            tensor.data = data
    sandbox.substitute(twins)
    return twins


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let new tensors without a dtype have ``dtype``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class DrawsIn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Mode in which random operations on float64 draw in another dtype; their results are converted to float64.

    Args:
        dtype: dtype of the draws.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation; draw in the lower dtype if it is a random one."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func is torch.ops.aten.native_dropout.default:
            return self._dropout(*args)
        lowered = [self._lower(arg) for arg in args]
        options = {key: self._lower(value) for key, value in kwargs.items()}
        if (
            "dtype" in argument_names(func)
            and options.get("dtype") in (None, torch.float64)
            and not _tensors(args)
        ):
            options["dtype"] = self._dtype
        result = func(*lowered, **options)
        if func.name().split("::")[-1].split(".")[0].endswith("_") and _tensors(args):
            return args[0].copy_(result)  # the operation writes into its first argument
        return _raised(result)

    def _lower(self, value: Any) -> Any:
        double = isinstance(value, Tensor) and value.dtype == torch.float64
        return value.to(self._dtype) if double else self._dtype if value is torch.float64 else value

    def _dropout(self, values: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
        """Return float64 values under the mask that the lower dtype draws."""
        _, mask = torch.ops.aten.native_dropout(values.to(self._dtype), p, train)
        scale = 0.0 if p == 1 else 1 / (1 - p)
        return values * mask * scale, mask


def _tensors(args: Any) -> bool:
    """Return whether the first argument is a tensor."""
    return bool(args) and isinstance(args[0], Tensor)


def _raised(result: Any) -> Any:
    """Return a result, or each of several, in float64."""
    if isinstance(result, (tuple, list)):
        return type(result)(map(_raised, result))
    return result.double() if isinstance(result, Tensor) and result.is_floating_point() else result
