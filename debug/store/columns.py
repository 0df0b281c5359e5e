"""Statistics of one saved step as arrays over tensors, and the kind of a tensor by its name."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_MODULE_TENSOR = re.compile(r"^(?:(.*)\.)?(input|output)\.")


class Columns(NamedTuple):
    """Statistics of the tensors of one kind; a tensor that lacks one of the statistics is left out."""

    names: tuple[str, ...]
    """Names of parameters for ``weight``, ``gradient`` and ``update``; of modules for ``input`` and ``output``."""
    values: tuple[Floats, ...]
    """For each statistic an array over the names."""
    shapes: tuple[tuple[int, ...], ...]
    """Shape of each tensor; ``()`` if the index does not have it."""
    dtypes: tuple[str, ...]
    """Torch's name of each dtype; empty if the index does not have it."""


def kind_of(name: str) -> tuple[str, str]:
    """Return the kind of a tensor and the parameter or module that it belongs to, by the tensor's name."""
    head, _, rest = name.partition("/")
    if rest:
        return head, rest
    match = _MODULE_TENSOR.match(name)
    return (match[2], match[1] or "") if match else ("weight", name)
