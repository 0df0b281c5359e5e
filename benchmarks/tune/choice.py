"""The choice of the default search: candidates on the fast functions of ``search.py`` and on others, on seeds from 1000."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch

from .. import harness
from ..record import Row
from . import methods
from .functions import FUNCTIONS, Function
from .search import TRIALS
from .unreported import UNREPORTED

CLAIM = "tune_choice"
QUICK = False
FIRST_SEED = 1000
"""The report, ``search.py``, has the seeds from 0."""
TRAININGS = ("SVC", "digits")
"""Functions of the report that are left out here, since they are slow, or all methods reach the same value."""
CHOICE = {name: f for name, f in FUNCTIONS.items() if name not in TRAININGS} | UNREPORTED


def as_they_are(values: Sequence[float]) -> Any:
    """Return the values, in place of ``compressed``."""
    return np.asarray(values, dtype=float)


def changed(**changes: Any) -> methods.Search:
    """Return our search with other constants or functions of ``gaussian.py``."""

    def search(function: Function, trials: int, seed: int) -> float:
        from loopwise.tune.search import gaussian

        with mock.patch.multiple(gaussian, **changes):
            return methods.ours(function, trials, seed)

    return search


CANDIDATES: dict[str, methods.Search] = {
    "ours": methods.ours,
    "10 start points": changed(START=10),
    "values as they are": changed(compressed=as_they_are),
    "GP of Optuna": methods.optuna_by(methods.gp),
    "TPE of Optuna": methods.optuna_by(methods.tpe),
}


def studies(search: methods.Search, seed: int) -> dict[str, float]:
    """Search each function once; return the normalized regrets."""
    torch.set_num_threads(1)
    regrets = {}
    for name in ["Branin", "Levy"] if QUICK else CHOICE:
        function = CHOICE[name]
        assert function.optimum is not None
        found = search(function, TRIALS, seed)
        regrets[name] = (found - function.optimum) / (function.typical - function.optimum)
    return regrets


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {
        name: lambda seed, search=search: studies(search, FIRST_SEED + seed)  # type: ignore[misc]
        for name, search in CANDIDATES.items()
    }


def ranks(runs: Mapping[str, Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Return the ranks of each candidate over functions and seeds, from 1; equal regrets share the mean rank."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for function in next(iter(runs.values())):
        for regrets in zip(*(of[function] for of in runs.values()), strict=False):  # seeds that all have run
            for name, own in zip(runs, regrets, strict=True):
                better, equal = sum(r < own for r in regrets), sum(r == own for r in regrets)
                found[name].append(better + (equal + 1) / 2)
    return found


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    table = []
    for name, places in ranks(runs).items():
        table.append(Row(f"{name}: mean rank", [statistics.mean(places)], None, "", "", None))
        means = [statistics.mean(values) for values in runs[name].values()]
        table.append(Row(f"{name}: mean normalized regret of each function", means, None, "", "", None))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
