"""The choice of the default search: candidates on the functions of ``search.py``, on seeds from 100."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

from .. import harness
from ..record import Row
from . import methods
from .functions import Function
from .search import level, regrets, studies

CLAIM = "tune_choice"
QUICK = False
FIRST_SEED = 100
"""The report, ``search.py``, has the seeds from 0."""


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
    "GP of Optuna": methods.optuna_by(methods.gp),
    "TPE of Optuna": methods.optuna_by(methods.tpe),
}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {
        name: lambda seed, search=search: studies(search, FIRST_SEED + seed)  # type: ignore[misc]
        for name, search in CANDIDATES.items()
    }


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    found, table = regrets(runs), []
    for name in runs:
        means = [statistics.mean(of[name]) for of in found.values()]
        table.append(Row(f"{name}: mean normalized regret on each function", means, None, "", "", None))
        best = sum(level(of, name) for of in found.values())
        table.append(
            Row(f"{name}: functions with the best one, or level with it", [best], None, "", "", None)
        )
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
