"""Rows of the sifting table: final metrics after equal numbers of samples, and samples until plain's final metric."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import NamedTuple

from ..harness import Runs
from ..record import Row, device
from ..tasks import TASKS

Quantities = dict[str, list[float]]
TABLE = ("digits", "glyphs", "glyphs-noise", "bytes", "packages", "sounds")
"""Tasks of the table; nothing was chosen on the last two."""
PEERS = ("original", "selective-backprop", "infobatch", "batch-scores", "seta", "orderdp", "uniform")
METHODS_OF_TABLE = ("plain", "ours", "percentile", *PEERS)
BUDGETS = (0.55, 0.75, 1.0)
"""Samples through backward, as shares of the plain loader's.  Each is a training of its own, whose learning rate falls to
0 at its end: a point on the way of a longer training would be at a higher rate."""
GAINS = {"glyphs": 2.0, "glyphs-noise": 2.0}
"""Task -> least gain over plain after as many samples, in standard errors; -1 for the other tasks."""
SAMPLES = {"digits": 0.65, "glyphs": 0.75, "glyphs-noise": 0.8, "bytes": 1.02}
"""Task -> greatest number of samples to plain's final metric, of plain's."""


class Reached(NamedTuple):
    """Number of samples, and seconds, with which a method reaches a metric; infinite if it does not with plain's samples.

    Seconds on a CPU are processor time.  A run has one thread and waits for nothing, so processor time equals wall-clock
    time on a quiet machine, and leaves other processes out on a shared one.
    """

    seconds: float
    samples: float


Point = tuple[float, float, float]
"""Metric, seconds and samples of a training."""


def reach(points: list[Point], target: float, higher: bool) -> Reached:
    """Return the first crossing of the target on the line through trainings of growing length.

    The shortest training stands for all shorter ones: nothing is claimed below it.
    """
    sign = 1.0 if higher else -1.0
    if sign * (points[0][0] - target) >= 0:
        return Reached(*points[0][1:])
    for before, after in itertools.pairwise(points):
        if sign * (after[0] - target) >= 0:
            part = (target - before[0]) / (after[0] - before[0])
            seconds, samples = (
                low + part * (high - low) for low, high in zip(before[1:], after[1:], strict=True)
            )
            return Reached(seconds, samples)
    return Reached(math.inf, math.inf)


def in_standard_errors(ours: list[float], plain: list[float], higher: bool) -> float:
    """Return our mean gain over plain, paired by the seeds that both have, in standard errors of the mean."""
    gains = [(a - b) if higher else (b - a) for a, b in zip(ours, plain, strict=False)]
    mean = statistics.fmean(gains)
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return mean / max(error, abs(mean) / 99, 1e-12)  # no more than 99, where all runs gain the same


@dataclass(frozen=True, slots=True)
class Table:
    """Results of all methods on one task."""

    task: str
    runs: Runs

    def of(self, method: str, budget: float) -> Quantities:
        return self.runs.get(f"{self.task}.{method}.{round(100 * budget)}", {})

    def reached(self, method: str) -> list[Reached]:
        """Return for each seed with what a method reaches the mean final metric of plain, with the same seeds."""
        trainings = [quantities for budget in BUDGETS if (quantities := self.of(method, budget))]
        plain = self.of("plain", 1.0)["metric"]
        seeds = min(len(plain), *(len(quantities["metric"]) for quantities in trainings))
        higher, target = TASKS[self.task].higher, statistics.fmean(plain[:seeds])
        return [
            reach([_point(quantities, run) for quantities in trainings], target, higher)
            for run in range(seeds)
        ]

    def rows(self) -> list[Row]:
        methods = [name for name in METHODS_OF_TABLE if name != "plain" and self.of(name, 1.0)]
        table: list[Row] = []
        for budget in (1.0, BUDGETS[0]):
            for method in methods:
                table += self.equal_samples(method, budget)
        for method in methods:
            table += self.until(method)
        return table

    def equal_samples(self, method: str, budget: float) -> list[Row]:
        """Return rows of the final metric after as many samples as another method, and of the gain over it."""
        other = "plain" if budget == 1.0 else "uniform"
        ours, theirs = self.of(method, budget), self.of(other, budget)
        if not ours or not theirs or method == other:
            return []
        task, seeds = TASKS[self.task], min(len(ours["metric"]), len(theirs["metric"]))
        label = (
            f"{self.task}, {method}: final {task.metric} after {budget} of plain's samples (equal samples)"
        )
        table = [Row(label, ours["metric"][:seeds], theirs["metric"][:seeds], other, task.metric, None)]
        if method != "ours" or seeds < 2:
            return table
        gain = in_standard_errors(ours["metric"], theirs["metric"], task.higher)
        least = GAINS.get(self.task, -1.0) if other == "plain" else -1.0
        return [
            *table,
            Row(
                f"{label}, better than {other}'s by",
                [gain],
                None,
                "",
                "standard errors",
                f"ours >= {least:g}",
            ),
        ]

    def until(self, method: str) -> list[Row]:
        """Return rows of samples and seconds until plain's final metric, of plain's."""
        goal, whole = f"plain's final {TASKS[self.task].metric}", self.of("plain", 1.0)
        found = self.reached(method)
        points = [_point(whole, run) for run in range(len(found))]
        bar = SAMPLES.get(self.task) if method == "ours" else None
        text = None if bar is None else f"ratio <= {bar}"
        samples, seconds = [one.samples for one in found], [one.seconds for one in found]
        label = f"{self.task}, {method}"
        return [
            Row(f"{label}: samples to {goal}", samples, [p[2] for p in points], "plain", "samples", text),
            Row(f"{label}: seconds to {goal}", seconds, [p[1] for p in points], "plain", "s", None),
        ]


def _point(quantities: Quantities, run: int) -> Point:
    share = quantities["processor share"][run] if device() == "cpu" else 1.0
    return quantities["metric"][run], quantities["seconds"][run] * share, quantities["samples"][run]


def beside(task: str, runs: Runs) -> list[Row]:
    """Return the rows of methods that trained beside plain for as many passes; plain beside plain shows the noise."""
    labels = {
        "auto": ("auto=True", True),
        "auto-scored": ("auto=True, score_every=1", True),
        "plain": ("plain beside itself", False),
    }
    table = []
    for method, (label, held) in labels.items():
        quantities = runs.get(f"{task}.{method}.beside", {})
        if not quantities:
            continue
        metric, higher = TASKS[task].metric, TASKS[task].higher
        ours, plain = quantities["seconds"], quantities["other seconds"]
        name = f"{task}, {label}: seconds of as many passes (equal passes)"
        table.append(Row(name, ours, plain, "plain", "s", "ratio <= 1.03" if held else None))
        if len(ours) < 2:
            continue
        gain = in_standard_errors(quantities["metric"], quantities["other metric"], higher)
        name = f"{task}, {label}: final {metric}, better than plain's by (equal passes)"
        table.append(Row(name, [gain], None, "", "standard errors", "ours >= -1" if held else None))
    return table


def composer(runs: Runs) -> list[Row]:
    """Return the row of Composer's own selection beside plain, both with Composer's torch."""
    theirs, plain = (
        runs[f"digits.{method}@composer.100"]["metric"] for method in ("selective-backprop", "plain")
    )
    label = "digits, Composer's selective-backprop in its own environment: final accuracy (equal samples)"
    return [Row(label, theirs, plain, "plain@composer", "accuracy", None)]


def rows(runs: Runs) -> list[Row]:
    """Return the rows of the tasks that have runs."""
    table: list[Row] = []
    for task in TABLE:
        if f"{task}.plain.100" in runs:
            table += Table(task, runs).rows()
    if "digits.plain@composer.100" in runs:
        table += composer(runs)
    for task in (*TABLE, "cheap"):
        table += beside(task, runs)
    shares = [share for quantities in runs.values() for share in quantities["processor share"]]
    return [*table, Row("all runs: processor seconds a second of training", shares, None, "", "", None)]
