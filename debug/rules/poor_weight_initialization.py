"""Weights with a bad first value: all equal, or so scaled that activations grow or shrink from layer to layer.

Statistic: at the first saved step, the standard deviation of each weight, and the ratio of the largest to the smallest
standard deviation of the outputs of layers.
Default: a linear or convolution layer whose weights are equal and not zero; or a ratio of 1,000 between linear and
convolution layers whose outputs have ten elements or more.
Why: equal weights get equal gradients forever; in the measured deep networks a suitable initialization keeps the ratio
below 100.
False alarms: layers whose outputs are meant to differ in size.
"""

import itertools

import numpy as np

from .finding import Observation, Observations, Rule
from .history import History, matrices, sizes, some

TYPES = ("Linear", "Conv1d", "Conv2d", "Conv3d")


def detect(history: History, ratio: float = 1e3) -> Observations:
    if len(history.steps()) > 1:
        return
    weights = history.now.columns("weight", "std", "max")
    of_layer = [history.type_of(name.rpartition(".")[0]) in TYPES for name in weights.names]
    equal = (weights.values[0] == 0) & (weights.values[1] != 0) & (sizes(weights) > 1) & matrices(weights)
    alike = tuple(itertools.compress(weights.names, equal & np.array(of_layer, dtype=bool)))
    if alike:
        yield Observation(f"all elements of {some(alike)} are equal", alike)
    outputs = history.now.columns("output", "std")
    stds = {
        name: float(std)
        for name, size, std in zip(outputs.names, sizes(outputs), outputs.values[0], strict=True)
        if history.type_of(name) in TYPES and size >= 10 and std > 0 and np.isfinite(std)
    }
    if len(stds) > 1 and max(stds.values()) > ratio * min(stds.values()):
        low, high = min(stds, key=stds.__getitem__), max(stds, key=stds.__getitem__)
        yield Observation(
            f"outputs have a standard deviation of {stds[high]:.3g} at {high} and {stds[low]:.3g} at {low}",
            (low, high),
            {name: [(history.now.number, stds[name])] for name in (low, high)},
        )


RULE = Rule(
    detect,
    "warning",
    "use the random initialization of Kaiming or Xavier that fits the activation, and normalize the input",
)
