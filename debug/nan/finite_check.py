"""Test whether tensors are finite, by a function in C or by their norms, and without waiting for an accelerator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set

import torch
from torch import nn

from ..model.shards import local
from ..statistics import native
from ..torch_internals import CONVOLUTIONS, norms, sparse_values

HALVES = (torch.float16, torch.bfloat16)
LARGE = 2**16
"""Elements of a gradient above which only a row and a column are read."""
FEW = 16
"""Numbers that are read one by one faster than they are added by torch."""
PRODUCTS = (nn.Linear, *CONVOLUTIONS)


def products(models: Iterable[nn.Module]) -> dict[int, nn.Parameter | None]:
    """Return the weights whose gradients are matrix products, those of linear layers and convolutions.

    Returns:
        ``id`` of a weight -> bias of its layer; ``None`` if the layer has none or if several layers share the weight.
    """
    biases, others = dict[int, nn.Parameter | None](), set[int]()
    for model in models:
        for module in model.modules():
            is_product = isinstance(module, PRODUCTS) and getattr(module, "groups", 1) == 1
            for name, parameter in module.named_parameters(recurse=False):
                if is_product and name == "weight":
                    bias = getattr(module, "bias", None)
                    biases[id(parameter)] = None if id(parameter) in biases else bias
                else:
                    others.add(id(parameter))
    return {key: bias for key, bias in biases.items() if key not in others}


def edges(product: torch.Tensor, bias: nn.Parameter | None = None) -> list[torch.Tensor]:
    """Return parts of a weight's gradient that are not finite if a factor of the matrix product is not.

    These are a row and a column.  The gradient of a bias is the sum of the factor that the column depends on, and is
    faster to read.  An overflow of the product itself may be missed.
    """
    if product.numel() < LARGE or product.layout is not torch.strided or product.device.type != "cpu":
        return [product]
    return [product[0], product[:, 0] if bias is None or bias.grad is None else bias.grad]


def _is_read(bias: nn.Parameter | None, own: Set[int]) -> bool:
    """Return whether the gradient of a product's bias is read by itself, and shows what a column of the product would.

    Args:
        bias: the bias; ``None`` if there is none.
        own: identities of the parameters whose gradients are read.
    """
    return bias is not None and bias.grad is not None and id(bias) in own


def parts(
    parameters: Sequence[nn.Parameter], products: Mapping[int, nn.Parameter | None]
) -> list[torch.Tensor]:
    """Return the gradients of parameters, of products only edges.

    Args:
        parameters: the parameters; those without a gradient are left out.
        products: what the function ``products`` returned.
    """
    read: list[torch.Tensor] = []
    own = set(map(id, parameters))
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if id(parameter) in products and gradient.numel() >= LARGE:
            bias = products[id(parameter)]
            row, *column = edges(local(gradient), bias)
            read.append(row)
            if not _is_read(bias, own):
                read += column
        else:
            read.append(gradient)
    return read


def finite_by_kernel(
    parameters: Sequence[nn.Parameter], products: Mapping[int, nn.Parameter | None]
) -> bool | None:
    """Return whether the gradients of parameters are finite, of products only edges, by one call of a function in C.

    No tensor is made: of a small step, calls of torch are most of what the test costs.

    Args:
        parameters: the parameters; those without a gradient are left out.
        products: what the function ``products`` returned.

    Returns:
        ``None`` if there is no compiler, or if a gradient is not a plain, contiguous tensor on the CPU.
    """
    if native.kernel() is None:
        return None
    areas: list[int] = []
    own = set(map(id, parameters))
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        kind = native.FLOATS.get(gradient.dtype)
        if kind is None or type(gradient) is not torch.Tensor or not gradient.is_cpu:
            return None
        if gradient.layout is not torch.strided or not gradient.is_contiguous():
            return None
        address, size = gradient.data_ptr(), gradient.numel()
        if size < LARGE or id(parameter) not in products:
            areas += (address, 1, 0, size, kind)
            continue
        outputs, inputs = gradient.shape[:2]
        areas += (address, 1, 0, size // outputs, kind)  # a row
        bias = products[id(parameter)]
        if not _is_read(bias, own):
            areas += (address, outputs, size // outputs, size // (outputs * inputs), kind)
    return native.all_finite(areas)


def total(tensors: Sequence[torch.Tensor]) -> torch.Tensor | float:
    """Return the sum of the norms of floating-point tensors, which is not finite if an element is not, or if it overflows.

    Returns:
        A number; if the first tensor is on a CUDA device, a tensor there, for which nothing has waited.
    """
    parts = [
        tensor
        if tensor.layout is torch.strided and type(tensor) is torch.Tensor
        else stored_values(local(tensor))
        for tensor in tensors
    ]
    if not parts:
        return 0.0
    if parts[0].device.type == "cuda":
        return torch.nn.utils.get_total_norm(parts, 1.0)  # few kernels for all tensors
    halves = [part for part in parts if part.dtype in HALVES]
    others = [part for part in parts if part.dtype not in HALVES] if halves else parts
    # one call takes half the time of a sum for each
    parts = (norms(others) if others else []) + (norms(halves, torch.float32) if halves else [])
    if len(parts) <= FEW:
        return sum([float(part) for part in parts])
    device = parts[0].device
    if any([part.device != device or part.dtype != parts[0].dtype for part in parts]):
        parts = [part.to(device, torch.float64) for part in parts]
    return float(torch.stack(parts).sum())


def stored_values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values of a sparse tensor, and any other tensor unchanged."""
    return sparse_values(tensor) if tensor.layout is torch.sparse_coo else tensor


def not_finite(tensor: torch.Tensor) -> bool:
    """Return whether a floating-point tensor contains NaN or infinity."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.is_meta:
        return False
    return not bool(torch.isfinite(stored_values(tensor)).all())


class Flag:
    """A sum that is being copied to the host.

    Args:
        value: the sum; if it is on an accelerator, the copy takes place once the device has computed it.
    """

    def __init__(self, value: torch.Tensor | float) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = value
        if isinstance(value, torch.Tensor) and value.device.type == "cuda":
            self._host = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(value.device))

    def is_finite(self) -> bool:
        """Wait for the copy and return whether the sum is finite."""
        if self._event is not None:
            self._event.synchronize()
        return math.isfinite(self._host)
