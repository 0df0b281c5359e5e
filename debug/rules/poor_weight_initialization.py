"""Weights with a bad first value: all equal, or so scaled that activations grow or shrink from layer to layer.

Statistic: at the first saved step, the standard deviation of each weight, and the ratio of the largest to the smallest
standard deviation of the outputs of layers.
Default: a linear or convolution layer whose weights are equal and not zero; or a ratio of 1,000 between linear and
convolution layers whose outputs have ten elements or more.
Why: equal weights get equal gradients forever; in the measured deep networks a suitable initialization keeps the ratio
below 100.
False alarms: layers whose outputs are meant to differ in size.
"""

from __future__ import annotations

import numpy as np

from ..store.columns import Columns
from .finding import Observation, Observations, Rule
from .history import History, some

TYPES = ("Linear", "Conv1d", "Conv2d", "Conv3d")


def detect(history: History, ratio: float = 1e3) -> Observations:
    if len(history.steps()) > 1:
        return
    weights = history.now.columns("weight", "std", "max")
    alike = tuple(
        name
        for name, shape, std, high in zip(weights.names, weights.shapes, *weights.values, strict=True)
        if len(shape) > 1
        and std == 0
        and high != 0
        and np.prod(shape) > 1
        and history.type_of(name.rpartition(".")[0]) in TYPES
    )
    if alike:
        yield Observation(f"all elements of {some(alike)} are equal", alike)
    outputs = history.now.columns("output", "std")
    sizes = _sizes(history, outputs)
    if len(sizes) > 1 and max(sizes.values()) > ratio * min(sizes.values()):
        low, high = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        yield Observation(
            f"outputs have a standard deviation of {sizes[high]:.3g} at {high} and {sizes[low]:.3g} at {low}",
            (low, high),
            {name: [(history.now.number, sizes[name])] for name in (low, high)},
        )


def _sizes(history: History, outputs: Columns) -> dict[str, float]:
    """Return the standard deviation of the outputs of layers, if it is not zero."""
    return {
        name: float(std)
        for name, shape, std in zip(outputs.names, outputs.shapes, outputs.values[0], strict=True)
        if history.type_of(name) in TYPES and np.prod(shape) >= 10 and std > 0 and np.isfinite(std)
    }


RULE = Rule(
    detect,
    "warning",
    "use the random initialization of Kaiming or Xavier that fits the activation, and normalize the input",
)
