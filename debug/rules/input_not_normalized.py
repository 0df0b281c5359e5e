"""Inputs of the model that are constant or tiny, or are far from zero mean and unit size.

Statistic: mean and standard deviation of the model's floating-point inputs of two dimensions or more.
Default: all values are equal, none is larger than 0.01, their root mean square is above 20, or their mean is 20 times as
large as their deviation, at two successive saved steps.  Models whose first layer normalizes may have such inputs.
Why: pixels from 0 to 255 have about 130; normalized data has about 1, and tabular data rarely more than 10.
Pixels that are divided by 255 twice are at most 0.004; beside them, biases and initial noise are all that a layer sees.  Images whose mean was subtracted twice, or before they were
divided, differ by little from a constant.
False alarms: models that normalize their input in another way.
"""

import numpy as np

from .finding import Observation, Observations, Rule
from .history import Columns, Floats, History, Mask


def detect(history: History, size: float = 20.0, least: float = 0.01, steps: float = 2) -> Observations:
    def is_data(columns: Columns) -> Mask:
        described = zip(columns.names, columns.shapes, columns.dtypes, strict=True)
        return np.array([n == "" and len(s) > 1 and "float" in d for n, s, d in described], dtype=bool)

    def constant(columns: Columns, mean: Floats, std: Floats, low: Floats, high: Floats) -> Mask:
        return np.asarray(is_data(columns) & (low == high))

    def large(columns: Columns, mean: Floats, std: Floats, low: Floats, high: Floats) -> Mask:
        return np.asarray(is_data(columns) & (np.sqrt(mean**2 + std**2) > size))

    def tiny(columns: Columns, mean: Floats, std: Floats, low: Floats, high: Floats) -> Mask:
        return np.asarray(is_data(columns) & (low != high) & (np.maximum(-low, high) < least))

    def offset(columns: Columns, mean: Floats, std: Floats, low: Floats, high: Floats) -> Mask:
        return np.asarray(is_data(columns) & (low != high) & (np.abs(mean) > size * std))

    statistics = ("mean", "std", "min", "max")
    tests = {"constant": constant}
    if not history.begins_with_norm:
        tests |= {"not normalized": large, "tiny": tiny, "nearly constant": offset}
    for what, test in tests.items():
        if history.persistent(steps, "input", statistics, test):
            mean, std, low, high = (float(v[0]) for v in history.now.columns("input", *statistics).values)
            yield Observation(
                f"the model's input is {what}: mean {mean:.4g}, standard deviation {std:.4g}, "
                f"from {low:.4g} to {high:.4g}",
                ("input",),
                {"mean": history.points("input", "", "mean"), "std": history.points("input", "", "std")},
            )


RULE = Rule(detect, "warning", "subtract the training set's mean and divide by its standard deviation")
