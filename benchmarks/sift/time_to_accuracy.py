"""Gain of data sifting: seconds to the plain loader's final accuracy, compared with peers, on five tasks."""

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
from .rows import rows as rows
from .training import Method, beside, train

CLAIM = "sift"
QUICK = False

OURS: dict[str, dict[str, Any]] = {
    "ours": {"keep": 0.5},
    "ours-best": {"keep": 0.3},
    "ours-long": {"keep": 0.5},
    "auto": {"auto": True},
    "auto-scored": {"auto": True, "score_every": 1},
}
"""Method -> arguments of ``SiftingDataLoader``.  ``ours`` is the default policy.  Chosen by validation data
(``python -m benchmarks.sift.time_to_accuracy TASK METHOD``), never by the test's."""

STRETCH = {"ours": 1.1, "ours-best": 1.4, "uniform": 1.1, "ours-long": 1.9}
"""Method -> epochs, as a multiple of the plain loader's: sifting spends some of the saved time on more epochs;
``ours-long`` spends all of it: as many samples go through backward as with the plain loader."""

TABLE = ("digits", "glyphs", "glyphs-noise", "bytes")
PEERS = ("original", "selective-backprop", "infobatch", "uniform")


def plain(task: Any, loader: Any, model: Any, epochs: int, seed: int) -> Iterable[Any]:
    return loader


def ours(
    options: dict[str, Any], task: Any, loader: Any, model: Any, epochs: int, seed: int
) -> Iterable[Any]:
    """Return the sifting loader, imported late, as peers' environments lack its dependencies."""
    from loopwise.sift import SiftingDataLoader

    return SiftingDataLoader(loader, model, loss=task.losses, epochs=epochs, seed=seed, **options)


def rule(
    kind: Callable[..., Any], task: Any, loader: Any, model: Any, epochs: int, seed: int
) -> Iterable[Any]:
    return kind(loader, model, task.losses, epochs, seed)


def uniform(task: Any, loader: Any, model: Any, epochs: int, seed: int) -> Iterable[Any]:
    """Return a loader of random samples, in each epoch as large a share as ``ours`` takes."""
    options = OURS["ours"]
    full = epochs * (1 - options.get("anneal", 0.0)) - 1e-9
    first = 0 if options.get("score_every") == 1 else 1  # without scoring, the first epoch is all unknown
    keep = options.get("keep", 0.5)
    shares = [1.0 if epoch < first or epoch >= full else keep for epoch in range(epochs)]
    return baselines.Uniform(loader, shares, seed)


def composer(task: Any, loader: Any, model: Any, epochs: int, seed: int) -> Iterable[Any]:
    """Return a loader that selects by Composer's own function, in its own environment."""
    from composer.algorithms.selective_backprop.selective_backprop import select_using_loss

    return baselines.SelectiveBackprop(loader, model, task.losses, epochs, seed, select_using_loss)


METHODS: dict[str, Method] = {
    "plain": plain,
    **{name: functools.partial(ours, options) for name, options in OURS.items()},
    "original": functools.partial(rule, baselines.PercentileRule),
    "selective-backprop": functools.partial(rule, baselines.SelectiveBackprop),
    "infobatch": functools.partial(rule, baselines.InfoBatch),
    "uniform": uniform,
    "plain@composer": plain,
    "selective-backprop@composer": composer,
}


def one(task: str, method: str, device: str, seed: int, part: str = "test") -> dict[str, float]:
    """Run a method on a task once."""
    return train(TASKS[task], METHODS[method], seed, device, QUICK, part, STRETCH.get(method, 1.0))


def with_plain(task: str, method: str, device: str, seed: int) -> dict[str, float]:
    """Run a method and the plain loader in one process, an epoch of each in turns."""
    return beside(TASKS[task], [METHODS[method], plain], seed, device, QUICK)


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    kind = "cpu" if device == "cpu" else "cuda"
    methods = ("plain", "ours", "ours-best", "ours-long", *PEERS)
    names = [(task, method) for task in TABLE for method in methods]
    if kind == "cpu" and installed("composer"):
        names += [("digits", "plain@composer"), ("digits", "selective-backprop@composer")]
    functions = {f"{task}.{method}": functools.partial(one, task, method, kind) for task, method in names}
    for method in ("auto", "auto-scored", "plain"):
        functions[f"cheap.{method}"] = functools.partial(with_plain, "cheap", method, kind)
    return functions


def validate() -> None:
    """Run once on validation data, to choose settings by: ``python -m benchmarks.sift.time_to_accuracy TASK METHOD``."""
    parser = argparse.ArgumentParser(description=validate.__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("method", choices=list(METHODS))
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--stretch", type=float, help="epochs, as a multiple of the plain loader's")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON, changes OURS[method]")
    args = parser.parse_args()
    global QUICK
    QUICK = args.quick
    if args.method in OURS:
        OURS[args.method].update(args.options)
    if args.stretch:
        STRETCH[args.method] = args.stretch
    result = one(args.task, args.method, "cpu", args.seed, "valid")
    for n in range(sum(name.startswith("metric@") for name in result)):
        curve = (result[f"{what}@{n}"] for what in ("seconds", "samples", "metric"))
        print("epoch {}: {:.1f} s, {:,.0f} samples, {:.4f}".format(n, *curve))
    print(f"processor share {result['processor share']:.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        validate()
    else:
        harness.main(sys.modules[__name__])
