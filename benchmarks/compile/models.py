"""Training steps of models of other authors, compared with the faster of eager and torch.compile.

``--model package:factory`` measures a model of yours instead and writes no record: ``factory()`` returns model, loss and
a batch, or a list of batches.
"""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable

from .. import harness
from ..harness import Runs
from ..models import MODELS
from ..record import Row
from . import own_model, speed
from .forms import FORMS

CLAIM = "compile_models"
QUICK = False


def timed(name: str, seed: int) -> dict[str, float]:
    speed.QUICK = QUICK
    return speed.timed(name, seed)


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    return {f"models.{name}": functools.partial(timed, name) for name in MODELS if name not in speed.LANGUAGE}


def rows(runs: Runs) -> list[Row]:
    table: list[Row] = []
    for case, values in runs.items():
        table += speed.step_rows(case.partition(".")[2], values)
    ratios = [_beside_faster(values) for values in runs.values()]
    what = f"{len(ratios)} models, step beside the faster of eager and torch.compile"
    table += [_row(what, "median", ratios, "ours <= 0.93"), _row(what, "worst", ratios, "ours <= 1.03")]
    for form, (label, bar) in speed.COSTS.items():
        what = f"{len(ratios)} models, {label} beside torch.compile's"
        costs = [_first(values, form) / _first(values, "torch.compile") for values in runs.values()]
        text = bar.replace("ratio", "ours")
        table += [_row(what, "median", costs, text), _row(what, "worst", costs, text)]
    return table


def _row(what: str, which: str, ratios: list[float], bar: str) -> Row:
    value = {"median": statistics.median, "worst": max}[which](ratios)
    return Row(f"{what}: {which} of the models", [value], None, "", "", bar)


def _beside_faster(values: dict[str, list[float]]) -> float:
    eager, other, ours = (statistics.median(values[f"{form}: step, ms"]) for form in FORMS)
    return ours / min(eager, other)


def _first(values: dict[str, list[float]], form: str) -> float:
    return statistics.median(values[f"{form}: first step, s"])


if __name__ == "__main__":
    if own_model.asked(sys.argv[1:]):
        own_model.main()
    else:
        harness.main(sys.modules[__name__])
