"""Search: the regret after 30 trials on seven functions, of our default, of Optuna's samplers, of Syne Tune, and at random."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping

import torch

from .. import harness
from ..record import Row
from . import methods
from .functions import FUNCTIONS

CLAIM = "tune_search"
QUICK = False
TRIALS = 30
OURS = "ours"
PEERS = {
    "tpe": "Optuna's default (TPE)",
    "gp": "Optuna's GP",
    "botorch@syne-tune": "Syne Tune's BoTorch",
    "random": "random",
}
"""Case -> name of a peer."""


def studies(search: methods.Search, seed: int) -> dict[str, float]:
    """Search each function once; return the smallest values."""
    torch.set_num_threads(1)
    names = ["Branin", "conditional"] if QUICK else list(FUNCTIONS)
    return {name: search(FUNCTIONS[name], TRIALS, seed) for name in names}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    searches: dict[str, methods.Search] = {
        OURS: methods.ours,
        "tpe": methods.optuna_by(methods.tpe),
        "gp": methods.optuna_by(methods.gp),
        "random": methods.drawn,
        "botorch@syne-tune": methods.botorch,
    }
    return {name: lambda seed, search=search: studies(search, seed) for name, search in searches.items()}  # type: ignore[misc]


def regrets(runs: harness.Runs) -> dict[str, dict[str, list[float]]]:
    """Return the normalized regrets: function -> case -> one for each seed.

    It is 0 for the optimum and 1 for a typical random point.  The optimum of the real trainings is the best value that any
    of the runs found.
    """
    table = {}
    for name in runs[OURS]:
        function, values = FUNCTIONS[name], {case: found[name] for case, found in runs.items()}
        best = min(min(found) for found in values.values()) if function.optimum is None else function.optimum
        table[name] = {
            case: [(value - best) / (function.typical - best) for value in found]
            for case, found in values.items()
        }
    return table


def error(values: list[float]) -> float:
    """Return the standard error of a mean; 0 for one value."""
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / len(values) ** 0.5


def level(table: Mapping[str, list[float]], case: str) -> bool:
    """Return whether a case is the best one, or within one standard error of the best one's mean."""
    best = min(table, key=lambda other: statistics.mean(table[other]))
    return statistics.mean(table[case]) <= statistics.mean(table[best]) + error(table[best])


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    found, table = regrets(runs), []
    peers = {case: peer for case, peer in PEERS.items() if case in runs}
    left = [peer for case, peer in PEERS.items() if case not in runs]
    without = f" (without {', '.join(left)}, which was not run)" if left else ""
    for name, of in found.items():
        for case, peer in peers.items():
            table.append(Row(f"{name}: normalized regret, median", of[OURS], of[case], peer, "", None))
    best = sum(level(of, OURS) for of in found.values())
    count, bar = len(found), min(5, len(found))
    name = f"functions of {count} with the best mean regret, or within one standard error of it{without}"
    table.append(Row(name, [best], None, "", "", f"ours >= {bar}"))
    for case, peer in peers.items():
        table.append(
            Row(f"the same for {peer}", [sum(level(of, case) for of in found.values())], None, "", "", None)
        )
    ahead = sum(statistics.mean(of[OURS]) < statistics.mean(of["random"]) for of in found.values())
    table.append(
        Row(
            f"functions of {count} with a mean regret below random's",
            [ahead],
            None,
            "",
            "",
            f"ours >= {count}",
        )
    )
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
