"""Functions to search: four known ones, one with parameters that depend on another one, and two real trainings.

Each takes a dictionary of values and returns a number to minimize.  The spaces are written as in a job file.  All methods
ask for all parameters, also for those that have no effect: on the function whose parameters depend on another one,
Optuna's samplers were not better when they asked for the others only (seeds from 100: GP 0.27 against 0.08, TPE 0.14
against 0.12).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..tasks.task import cached

Values = dict[str, Any]
SIDE = 29
"""Points of the table of the support vector machine on each axis."""
CAP = 5.0
"""Loss of a training that diverged."""


def continuous(low: float, high: float, scale: str = "linear") -> Values:
    """Return the description of a real parameter."""
    return {"type": "continuous", "low": float(low), "high": float(high), "scale": scale}


def integer(low: int, high: int, scale: str = "linear") -> Values:
    """Return the description of a whole parameter."""
    return {"type": "integer", "low": low, "high": high, "scale": scale}


def categorical(*values: Any) -> Values:
    """Return the description of a choice."""
    return {"type": "categorical", "values": list(values)}


def branin(values: Values) -> float:
    """Return Branin's function; three equal minima."""
    x, y = values["x"], values["y"]
    quadratic = (y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6) ** 2
    return quadratic + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A = np.array(
    [
        [10, 3, 17, 3.5, 1.7, 8],
        [0.05, 10, 17, 0.1, 8, 14],
        [3, 3.5, 1.7, 10, 17, 8],
        [17, 8, 0.05, 10, 0.1, 14],
    ]
)
_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann6(values: Values) -> float:
    """Return Hartmann's function of six variables."""
    x = np.array([values[f"x{number}"] for number in range(6)])
    return float(-(_ALPHA * np.exp(-(_A * (x - _P) ** 2).sum(1))).sum())


def ackley(values: Values) -> float:
    """Return Ackley's function of five variables, whose range is not symmetric around the minimum."""
    x = np.array([values[f"x{number}"] for number in range(5)])
    first = -20 * math.exp(-0.2 * math.sqrt(float((x * x).mean())))
    return first - math.exp(float(np.cos(2 * math.pi * x).mean())) + 20 + math.e


def mixed(values: Values) -> float:
    """Return a function as losses depend on hyperparameters: logarithmic ones, whole ones and choices, which interact."""
    rate = math.log10(values["lr"]) + (2.5 if values["optimizer"] == "sgd" else 3.5)
    width = math.log2(values["width"]) - 6.5
    decay = math.log10(values["decay"]) + 4
    shift = {"relu": 0.0, "gelu": -0.1, "tanh": 0.3}[values["activation"]]
    bowl = rate**2 + 0.3 * width**2 + 0.15 * decay**2 + 0.5 * rate * width
    drop = 4 * (values["dropout"] - 0.2 - 0.05 * abs(width)) ** 2
    choice = 0.1 if values["optimizer"] == "sgd" else 0.0
    return bowl + drop + shift + choice + 0.1


def conditional(values: Values) -> float:
    """Return a function of three families, each with parameters of its own."""
    family, rate = values["family"], math.log10(values["lr"])
    if family == "linear":
        return 0.5 + 0.2 * (rate + 1.5) ** 2 + 0.3 * (math.log10(values["l2"]) + 2) ** 2
    if family == "trees":
        depth, count = values["depth"], math.log10(values["trees"])
        return 0.15 + 0.1 * (rate + 1) ** 2 + 0.02 * (depth - 7) ** 2 + 0.2 * (count - 2.3) ** 2
    drop, layers = values["dropout"], values["layers"]
    return 0.3 * (rate + 2.7) ** 2 + 0.1 * (layers - 3) ** 2 + 3 * (drop - 0.25) ** 2


def _svc_table() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

    images, labels = load_digits(return_X_y=True)
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(images, labels))
    errors = np.zeros((SIDE, SIDE))
    for column, gamma in enumerate(np.logspace(-6, 0, SIDE)):
        kernel = rbf_kernel(images, gamma=gamma)
        for row, cost in enumerate(np.logspace(-3, 4, SIDE)):
            for train, test in folds:
                model = SVC(C=cost, kernel="precomputed").fit(kernel[np.ix_(train, train)], labels[train])
                errors[row, column] += (model.predict(kernel[np.ix_(test, train)]) != labels[test]).sum()
    return {"errors": 100 * errors / len(labels)}


def svc(values: Values) -> float:
    """Return the error in percent of a support vector machine on digits, in three folds; from a table, interpolated."""
    table = cached("search-svc-v1", _svc_table)["errors"]
    place = [(math.log10(values["C"]) + 3) / 7, (math.log10(values["gamma"]) + 6) / 6]
    (i, s), (j, t) = (
        (min(int(x * (SIDE - 1)), SIDE - 2), x * (SIDE - 1) - min(int(x * (SIDE - 1)), SIDE - 2))
        for x in place
    )
    above = table[i, j] * (1 - t) + table[i, j + 1] * t
    below = table[i + 1, j] * (1 - t) + table[i + 1, j + 1] * t
    return float(above * (1 - s) + below * s)


def _digits() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images.astype(np.float32) / 16, labels, test_size=0.4, stratify=labels, random_state=0
    )
    return dict(zip(("train", "valid", "train labels", "valid labels"), parts, strict=True))


@functools.cache
def digits_data() -> dict[str, torch.Tensor]:
    """Return images (n, 64) in [0, 1] and labels (n,) for training and validation."""
    return {name: torch.tensor(array) for name, array in cached("search-digits-v1", _digits).items()}


def digits_losses(values: Values, epochs: int = 5, seed: int = 0) -> list[float]:
    """Train a network of one hidden layer on digits; return its validation loss after each epoch."""
    data = digits_data()
    torch.manual_seed(seed)
    width = values["width"]
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Dropout(values["dropout"]), nn.Linear(width, 10)
    )
    optimizer = torch.optim.SGD(
        model.parameters(), values["lr"], values["momentum"], weight_decay=values["decay"]
    )
    losses, images, labels = [], data["train"], data["train labels"]
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(images)).split(values["batch"]):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(data["valid"]), data["valid labels"]).item()
        losses.append(min(loss, CAP) if math.isfinite(loss) else CAP)
    return losses


DIGITS = {
    "lr": continuous(1e-4, 1, "log"),
    "momentum": continuous(0, 0.99),
    "decay": continuous(1e-6, 1e-1, "log"),
    "dropout": continuous(0, 0.6),
    "width": integer(8, 256, "log"),
    "batch": categorical(16, 32, 64, 128),
}
"""Space of ``digits_losses``."""


@dataclass(frozen=True)
class Function:
    """A function to minimize."""

    call: Callable[[Values], float]
    space: dict[str, Values]
    optimum: float | None
    """Its smallest value; ``None``: the best one that any method finds counts."""
    typical: float
    """Median of 1000 random points (of 300 for digits), where the normalized regret is 1."""


FUNCTIONS = {
    "Branin": Function(branin, {"x": continuous(-5, 10), "y": continuous(0, 15)}, 0.397887, 32.0),
    "Hartmann 6": Function(hartmann6, {f"x{n}": continuous(0, 1) for n in range(6)}, -3.32237, -0.11),
    "Ackley": Function(ackley, {f"x{n}": continuous(-15, 30) for n in range(5)}, 0.0, 20.5),
    "mixed": Function(
        mixed,
        {
            "lr": continuous(1e-6, 1, "log"),
            "width": integer(8, 1024, "log"),
            "decay": continuous(1e-7, 1e-1, "log"),
            "dropout": continuous(0, 0.8),
            "optimizer": categorical("sgd", "adam"),
            "activation": categorical("relu", "gelu", "tanh"),
        },
        0.0,
        4.3,
    ),
    "conditional": Function(
        conditional,
        {
            "family": categorical("linear", "trees", "network"),
            "lr": continuous(1e-5, 1, "log"),
            "l2": continuous(1e-6, 1e2, "log"),
            "depth": integer(1, 20),
            "trees": integer(10, 1000, "log"),
            "dropout": continuous(0, 0.8),
            "layers": integer(1, 8),
        },
        0.0,
        1.7,
    ),
    "SVC": Function(
        svc, {"C": continuous(1e-3, 1e4, "log"), "gamma": continuous(1e-6, 1, "log")}, None, 52.0
    ),
    "digits": Function(lambda values: digits_losses(values)[-1], DIGITS, None, 2.11),
}
"""Name -> function."""
