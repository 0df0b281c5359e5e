"""Rows of the sifting table: seconds and samples until the plain loader's final metric, from the runs' curves."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass, field
from typing import NamedTuple

from ..harness import Runs
from ..record import Row, device
from ..tasks import TASKS

Quantities = dict[str, list[float]]
PEERS = ("original", "selective-backprop", "infobatch", "uniform")
PAYS = ("digits", "glyphs", "bytes")
"""Tasks whose seconds are held to a bar; the one with label noise is held to its final metric."""


class Reached(NamedTuple):
    """Point at which a run's curve first reaches the target; infinite if it never does.

    Seconds on a CPU are processor time.  A run has one thread and waits for nothing, so processor time equals wall-clock
    time on a quiet machine, and leaves other processes out on a shared one.
    """

    seconds: float
    samples: float


def reach(quantities: Quantities, run: int, target: float, higher: bool) -> Reached:
    """Return the first crossing of the target by the run's curve, which is linear between checkpoints."""
    sign = 1.0 if higher else -1.0
    count = sum(name.startswith("metric@") for name in quantities)
    names = ("metric", "seconds", "samples")
    curve = [[quantities[f"{name}@{n}"][run] for name in names] for n in range(count)]
    if sign * (curve[0][0] - target) >= 0:
        return Reached(0.0, 0.0)
    for before, after in itertools.pairwise(curve):
        if sign * (after[0] - target) >= 0:
            part = (target - before[0]) / (after[0] - before[0])
            return Reached(
                *(low + part * (high - low) for low, high in zip(before[1:], after[1:], strict=True))
            )
    return Reached(math.inf, math.inf)


def _busy(reached: Reached, share: float) -> Reached:
    """Turn wall-clock seconds into processor seconds if the device is a CPU."""
    return reached._replace(seconds=reached.seconds * share) if device() == "cpu" else reached


def in_standard_errors(ours: list[float], plain: list[float], higher: bool) -> float:
    """Return our mean gain over plain, paired by seed, in standard errors of the mean."""
    gains = [(a - b) if higher else (b - a) for a, b in zip(ours, plain, strict=True)]
    mean = statistics.fmean(gains)
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return mean / max(error, abs(mean) / 99, 1e-12)  # no more than 99, where all runs gain the same


@dataclass
class Table:
    """Results of all methods on one task."""

    task: str
    runs: Runs
    plain: str = "plain"
    reached: dict[str, list[Reached]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        higher = TASKS[self.task].higher
        target = statistics.median(self.of(self.plain)["metric"])
        for case, quantities in self.runs.items():
            task, _, method = case.partition(".")
            if task == self.task and ("@" in method) == ("@" in self.plain):
                self.reached[method] = [
                    _busy(reach(quantities, run, target, higher), quantities["processor share"][run])
                    for run in range(len(quantities["metric"]))
                ]

    def of(self, method: str) -> Quantities:
        return self.runs[f"{self.task}.{method}"]

    def seconds(self, method: str) -> list[float]:
        return [one.seconds for one in self.reached[method]]

    def best_peer(self) -> str | None:
        peers = [name for name in PEERS if name in self.reached]
        return min(peers, key=lambda name: statistics.median(self.seconds(name)), default=None)

    def rows(self) -> list[Row]:
        table = self.speed("ours", 0.65 if self.task in PAYS else None)
        table += self.speed("ours-best", 0.5 if self.task == "glyphs" else None)
        for method in ("ours-long", "ours", "ours-best", *PEERS):
            table += self.final(method) if method in self.reached else []
        return table

    def speed(self, method: str, bar: float | None) -> list[Row]:
        """Return rows of the seconds to plain's final metric beside plain and peers, and of samples through backward."""
        if method not in self.reached:
            return []
        goal, table, best = f"plain's final {TASKS[self.task].metric}", [], self.best_peer()
        for peer in ("plain", *(PEERS if method == "ours" else [best])):
            if peer in self.reached:
                limit = bar if peer == "plain" else 0.85 if peer == best and self.task in PAYS else None
                name = f"{peer}, the best peer" if peer == best else peer
                label = f"{self.task}, {method}: seconds to {goal}"
                text = None if limit is None else f"ratio <= {limit}"
                table.append(Row(label, self.seconds(method), self.seconds(peer), name, "s", text))
        ours, plain = ([one.samples for one in self.reached[name]] for name in (method, "plain"))
        label = f"{self.task}, {method}: samples through backward to it"
        text = "ratio <= 0.4" if self.task in PAYS and method == "ours" else None
        return [*table, Row(label, ours, plain, "plain", "samples", text)]

    def final(self, method: str) -> list[Row]:
        """Return rows of the final metric beside plain's, and of the difference."""
        task, ours, plain = TASKS[self.task], self.of(method)["metric"], self.of("plain")["metric"]
        better = in_standard_errors(ours, plain, task.higher)
        label = f"{self.task}, {method}: final {task.metric}"
        table = [Row(label, ours, plain, "plain", task.metric, None)]
        if method in PEERS:
            return table
        gain = f"{label}, better than plain's by"
        bar = "ours >= -1" if method == "ours-long" else None  # of as many samples through backward
        return [*table, Row(gain, [better], None, "", "standard errors", bar)]


def cheap(runs: Runs) -> list[Row]:
    """Return the rows of a task on which sifting cannot pay; plain beside plain shows the noise."""
    labels = {
        "auto": ("auto=True", "ratio <= 1.03"),
        "auto-scored": ("auto=True, score_every=1", "ratio <= 1.03"),
        "plain": ("plain beside itself", None),
    }
    table = []
    for method, (label, bar) in labels.items():
        quantities = runs[f"cheap.{method}"]
        ours, plain = quantities["seconds"], quantities["other seconds"]
        table.append(Row(f"cheap, {label}: seconds of the whole training", ours, plain, "plain", "s", bar))
    return table


def composer(runs: Runs) -> list[Row]:
    """Return the row of Composer's own selection beside plain, both with Composer's torch."""
    table = Table("digits", runs, plain="plain@composer")
    theirs, plain = (table.seconds(name) for name in ("selective-backprop@composer", "plain@composer"))
    label = "digits, Composer's selective-backprop in its own environment: seconds to plain's final accuracy"
    return [Row(label, theirs, plain, "plain@composer", "s", None)]


def rows(runs: Runs) -> list[Row]:
    """Return the rows of the tasks that have runs."""
    table: list[Row] = []
    for task in TASKS:
        if task != "cheap" and f"{task}.plain" in runs:
            table += Table(task, runs).rows()
    if "digits.plain@composer" in runs:
        table += composer(runs)
    if "cheap.plain" in runs:
        table += cheap(runs)
    shares = [share for quantities in runs.values() for share in quantities["processor share"]]
    return [*table, Row("all runs: processor seconds a second of training", shares, None, "", "", None)]
