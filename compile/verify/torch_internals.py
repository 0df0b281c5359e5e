"""Private functions of torch that the comparison of steps uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch


def decompositions(names: Iterable[str]) -> dict[Any, Callable[..., Any]]:
    """Return torch's function that computes an operation by simpler ones, for each overload of the named operations."""
    from torch._decomp import get_decompositions

    return dict(get_decompositions([getattr(torch.ops.aten, name) for name in names]))
