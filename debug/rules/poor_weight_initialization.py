"""Weights that begin wrongly: all alike, or such that activations grow or shrink from layer to layer.

Statistic, at the first saved step: standard deviation of each weight; that of the outputs of layers, the largest
over the smallest.  Default: a linear or convolution layer whose weights are equal and not zero; a ratio of
1,000 between layers of the same kind with ten elements at least.
Why: equal weights get equal gradients for ever; initialisations that fit keep the ratio below 100 in depths that
were looked at.
False alarms: layers whose outputs are meant to be of other sizes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..store.columns import Columns
from .finding import Observation, Rule
from .history import History

TYPES = ("Linear", "Conv1d", "Conv2d", "Conv3d")


def detect(history: History, ratio: float = 1e3) -> Iterator[Observation]:
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
        yield Observation(f"all elements of {', '.join(alike[:3])} are equal", alike)
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
    """Standard deviation of the outputs of layers that have any."""
    return {
        name: float(std)
        for name, shape, std in zip(outputs.names, outputs.shapes, outputs.values[0], strict=True)
        if history.type_of(name) in TYPES and np.prod(shape) >= 10 and std > 0 and np.isfinite(std)
    }


RULE = Rule(
    detect,
    "warning",
    "initialise by Kaiming's or Xavier's rule for the activation, at random, and normalise the input",
)
