"""Gain of data sifting, compared with peers on six tasks: equal numbers of samples, and samples to plain's final metric."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from .. import harness
from ..peers import installed
from ..tasks import TASKS
from . import baselines
from .rows import BUDGETS, METHODS_OF_TABLE, TABLE
from .rows import rows as rows
from .training import Budget, Method, beside, train

CLAIM = "sift"
QUICK = False

OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "percentile": {"keep": 0.5},
    "auto": {"auto": True},
    "auto-scored": {"auto": True, "score_every": 1},
}
"""Method -> arguments of ``SiftingDataLoader``.  ``ours`` is the default policy, ``percentile`` that of ``keep=``."""


def plain(task: Any, loader: Any, model: Any, budget: Budget, seed: int) -> Iterable[Any]:
    return loader


def ours(
    options: dict[str, Any], task: Any, loader: Any, model: Any, budget: Budget, seed: int
) -> Iterable[Any]:
    """Return the sifting loader, imported late, as peers' environments lack its dependencies."""
    from loopwise.sift import SiftingDataLoader

    return SiftingDataLoader(loader, model, loss=task.losses, seed=seed, **options)


def rule(
    kind: Callable[..., Any], task: Any, loader: Any, model: Any, budget: Budget, seed: int
) -> Iterable[Any]:
    return kind(loader, model, task.losses, budget, seed)


def uniform(task: Any, loader: Any, model: Any, budget: Budget, seed: int) -> Iterable[Any]:
    return baselines.Uniform(loader, seed)


def composer(task: Any, loader: Any, model: Any, budget: Budget, seed: int) -> Iterable[Any]:
    """Return a loader that selects by Composer's own function, in its own environment."""
    from composer.algorithms.selective_backprop.selective_backprop import select_using_loss

    return baselines.SelectiveBackprop(loader, model, task.losses, budget, seed, select_using_loss)


METHODS: dict[str, Method] = {
    "plain": plain,
    **{name: functools.partial(ours, options) for name, options in OURS.items()},
    "original": functools.partial(rule, baselines.PercentileRule),
    "selective-backprop": functools.partial(rule, baselines.SelectiveBackprop),
    "infobatch": functools.partial(rule, baselines.InfoBatch),
    "batch-scores": functools.partial(rule, baselines.BatchScores),
    "seta": functools.partial(rule, baselines.SeTa),
    "orderdp": functools.partial(rule, baselines.OrderDP),
    "uniform": uniform,
    "plain@composer": plain,
    "selective-backprop@composer": composer,
}


def one(task: str, method: str, budget: float, device: str, seed: int) -> dict[str, float]:
    """Train on a task by a method once, and measure on the test part."""
    return train(TASKS[task], METHODS[method], seed, device, QUICK, "test", budget)


def with_plain(task: str, method: str, device: str, seed: int) -> dict[str, float]:
    """Train by a method and by the plain loader in one process, a pass of each in turns."""
    return beside(TASKS[task], [METHODS[method], plain], seed, device, QUICK)


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    kind = "cpu" if device == "cpu" else "cuda"
    names = [(task, method, budget) for task in TABLE for budget in BUDGETS for method in METHODS_OF_TABLE]
    if kind == "cpu" and installed("composer"):
        names += [("digits", f"{method}@composer", 1.0) for method in ("plain", "selective-backprop")]
    functions = {
        f"{task}.{method}.{round(100 * budget)}": functools.partial(one, task, method, budget, kind)
        for task, method, budget in names
    }
    beside_plain = [(task, "auto") for task in (*TABLE, "cheap")]
    for task, method in [*beside_plain, ("cheap", "auto-scored"), ("cheap", "plain")]:
        functions[f"{task}.{method}.beside"] = functools.partial(with_plain, task, method, kind)
    return functions


def validate() -> None:
    """Train once, and measure on validation data: settings are chosen by this, with seeds from 100."""
    parser = argparse.ArgumentParser(description=validate.__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--budget", type=float, default=1.0, help="samples, as a share of the plain loader's")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the task's peak learning rate")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON, changes OURS[method]")
    args = parser.parse_args()
    if args.method in OURS:
        OURS[args.method].update(args.options)
    method = METHODS[args.method]
    found = train(TASKS[args.task], method, args.seed, "cpu", args.quick, "valid", args.budget, args.rate)
    print(f"{args.task} {args.method} budget {args.budget} rate {args.rate} seed {args.seed}: {found}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        validate()
    else:
        harness.main(sys.modules[__name__])
