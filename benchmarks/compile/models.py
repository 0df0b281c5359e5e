"""Training steps of models of other authors, compared with the faster of eager and torch.compile."""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable

from .. import harness
from ..harness import Runs
from ..models import MODELS
from ..record import Row
from . import speed

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
    label = f"{len(ratios)} models, step beside the faster of eager and torch.compile: "
    median = Row(label + "median of the models", [statistics.median(ratios)], None, "", "", "ours <= 0.95")
    return [*table, median, Row(label + "worst of the models", [max(ratios)], None, "", "", "ours <= 1.03")]


def _beside_faster(values: dict[str, list[float]]) -> float:
    eager, other, ours = (statistics.median(values[f"{form}: step, ms"]) for form in speed.FORMS)
    return ours / min(eager, other)


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
