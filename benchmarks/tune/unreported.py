"""Functions for the choice of the default search, which ``search.py`` does not report: four known ones, and a training's.

They are written as those of ``functions.py``.
"""

from __future__ import annotations

import math

import numpy as np

from .functions import Function, Values, categorical, continuous, integer

_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
_P = 1e-4 * np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]])


def _point(values: Values) -> np.ndarray:
    return np.array([values[name] for name in sorted(values)])


def hartmann3(values: Values) -> float:
    """Return Hartmann's function of three variables."""
    return float(-(_ALPHA * np.exp(-(_A * (_point(values) - _P) ** 2).sum(1))).sum())


def levy(values: Values) -> float:
    """Return Levy's function; many local minima."""
    w = 1 + (_point(values) - 1) / 4
    middle = ((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(math.pi * w[:-1] + 1) ** 2)).sum()
    last = (w[-1] - 1) ** 2 * (1 + math.sin(2 * math.pi * w[-1]) ** 2)
    return float(math.sin(math.pi * w[0]) ** 2 + middle + last)


def rosenbrock(values: Values) -> float:
    """Return Rosenbrock's function; a bent valley, and values over five decades."""
    x = _point(values)
    return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())


def styblinski_tang(values: Values) -> float:
    """Return the function of Styblinski and Tang; two minima on each axis."""
    x = _point(values)
    return float((x**4 - 16 * x**2 + 5 * x).sum() / 2)


def diverging(values: Values) -> float:
    """Return a function as losses of trainings: the best learning rate is just below those that diverge, to losses of 1e6.

    Its noise depends on the values alone.
    """
    rate = math.log10(values["lr"]) - (0.5 if values["norm"] == "layer" else 0.0)
    decay, depth, batch = math.log10(values["decay"]), values["depth"], values["batch"]
    edge = -1.5 - 0.1 * depth
    if rate > edge:
        return 2.3 * 10 ** min(6, (rate - edge) * 3)
    place = hash((round(rate, 9), depth, round(decay, 9), batch))
    noise = 0.01 * np.random.default_rng(abs(place) % 2**32).standard_normal()
    bowl = 2.1 * (1 - math.exp(-(((edge - 0.3 - rate) / 2) ** 2)))
    other = 0.005 * (depth - 6) ** 2 + 0.03 * (decay + 4) ** 2 + 0.05 * abs(math.log2(batch) - 6)
    return 0.2 + bowl + other + (0.1 if values["norm"] == "none" else 0.0) + float(noise)


def _box(count: int, low: float, high: float) -> dict[str, Values]:
    return {f"x{number}": continuous(low, high) for number in range(count)}


UNREPORTED = {
    "Hartmann 3": Function(hartmann3, _box(3, 0, 1), -3.86278, -0.52),
    "Levy": Function(levy, _box(4, -10, 10), 0.0, 38.3),
    "Rosenbrock": Function(rosenbrock, _box(4, -5, 10), 0.0, 2.4e5),
    "Styblinski-Tang": Function(styblinski_tang, _box(5, -5, 5), -195.83085, -40.0),
    "diverging": Function(
        diverging,
        {
            "lr": continuous(1e-6, 10, "log"),
            "decay": continuous(1e-7, 1e-1, "log"),
            "depth": integer(1, 16),
            "batch": integer(8, 512, "log"),
            "norm": categorical("none", "batch", "layer"),
        },
        0.17,
        2.45,
    ),
}
"""Name -> function."""
