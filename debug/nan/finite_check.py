"""Whether tensors are finite, by one sum, and without waiting for an accelerator."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..model.shards import local

HALVES = (torch.float16, torch.bfloat16)
LARGE = 2**16
"""Elements of a gradient that it takes longer to read than to choose some of."""
PRODUCTS = (nn.Linear, _ConvNd)


def products(models: Iterable[nn.Module]) -> dict[int, nn.Parameter | None]:
    """Weights whose gradients are matrix products: of linear layers and convolutions, and of nothing else.

    Returns:
        By a weight's identity the bias beside it; ``None`` where there is none, or more than one.
    """
    found, others = dict[int, nn.Parameter | None](), set[int]()
    for model in models:
        for module in model.modules():
            is_product = isinstance(module, PRODUCTS) and getattr(module, "groups", 1) == 1
            for name, parameter in module.named_parameters(recurse=False):
                if is_product and name == "weight":
                    bias = getattr(module, "bias", None)
                    found[id(parameter)] = None if id(parameter) in found else bias
                else:
                    others.add(id(parameter))
    return {key: bias for key, bias in found.items() if key not in others}


def edges(product: torch.Tensor, bias: nn.Parameter | None = None) -> list[torch.Tensor]:
    """What of a weight's gradient is not finite wherever a factor of the product is not: a row and a column.

    A bias has the sum of the column's factor for its gradient, which is faster to read.
    What overflows in the product itself is not seen in there.
    """
    if product.numel() < LARGE or product.layout is not torch.strided or product.device.type != "cpu":
        return [product]
    return [product[0], product[:, 0] if bias is None or bias.grad is None else bias.grad]


def total(tensors: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """The sum of all elements: not finite where one of them is not, or where the sum overflows.

    Returns:
        A number on the device of the first tensor; ``None`` where there is nothing to sum.
    """
    found = [_plain(tensor) for tensor in tensors]
    if not found:
        return None
    if found[0].device.type == "cuda":
        return torch.nn.utils.get_total_norm(found, 1.0)  # a few kernels for all of them
    sums = [each.sum(dtype=torch.float32) if each.dtype in HALVES else each.sum() for each in found]
    device = sums[0].device
    if any([each.device != device or each.dtype != sums[0].dtype for each in sums]):
        sums = [each.to(device, torch.float64, non_blocking=True) for each in sums]
    return torch.stack(sums).sum()


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    tensor = local(tensor)
    return tensor._values() if tensor.layout is torch.sparse_coo else tensor


class Flag:
    """A sum on its way to the host.

    Args:
        value: the sum; on an accelerator it is copied when the device gets there.
    """

    def __init__(self, value: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = value
        if value.device.type == "cuda":
            self._host = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(value.device))

    def is_finite(self) -> bool:
        """Waits until it is known."""
        if self._event is not None:
            self._event.synchronize()
        return math.isfinite(self._host.item())
