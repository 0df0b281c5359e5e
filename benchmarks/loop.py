"""One loop with all parts: seconds to the plain loop's final metric, and what the parts cost when they have nothing to do."""

from __future__ import annotations

import functools
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from . import harness
from .record import Row
from .sift.training import Training, in_turns
from .tasks import TASKS

CLAIM = "loop"
QUICK = False
TABLE = {"digits": "digits", "glyphs": "characters", "bytes": "language model"}
"""Name of a task -> its name in the record."""
SHARES = (0.4, 0.55, 0.7, 0.85, 1.0)
"""Samples through backward with all parts, as shares of the plain loop's; each is a training with its own schedule."""
IDLE_BAR = 1.02


def plain(task: Any, loader: Any, *_: Any) -> Any:
    return loader


def sifted(task: Any, loader: Any, model: Any, budget: Any, seed: int, **options: Any) -> Any:
    from loopwise.sift import SiftingDataLoader

    return SiftingDataLoader(loader, model, loss=task.losses, seed=seed, **options)


class AllParts(Training):
    """Training with the step, the watch and the loader of Loopwise; step and watch write a run each.

    Args:
        idle: switch on all parts with nothing to do: no sample left out, the eager step, nothing saved.
        folder: folder of the run.
        arguments: arguments of ``Training``.
    """

    def __init__(self, idle: bool, folder: str, *arguments: Any) -> None:
        from loopwise.compile import Plan, TrainStep
        from loopwise.debug import Watch, every

        super().__init__(*arguments)
        self.step = TrainStep(
            self.model, self.task.losses, self.optimizer, plan=Plan() if idle else None, run=f"{folder}/step"
        )
        watching: dict[str, Any] = {"save": every(10**9), "rules": False} if idle else {}
        self.watch = Watch(self.model, self.optimizer, run=f"{folder}/watch", **watching)

    def _update(self, inputs: Any, targets: Any, weights: list[Any], done: float, observe: Any) -> None:
        self.set_rate(done)
        loss = self.step((inputs.to(self.device), targets.to(self.device)))
        self.watch.step(loss=loss)
        self.budget.used += len(inputs)

    def close(self) -> None:
        """End the run."""
        self.watch.close()
        self.step.close()
        self.loader.close()  # type: ignore[attr-defined]


def alone(task: str, device: str, seed: int) -> dict[str, float]:
    """Train by the plain loop."""
    return Training(TASKS[task], plain, seed, device, QUICK).train("test")


def together(task: str, share: float, device: str, seed: int) -> dict[str, float]:
    """Train with all parts on a share of the plain loop's samples."""
    with tempfile.TemporaryDirectory() as folder:
        run = AllParts(False, folder, TASKS[task], sifted, seed, device, QUICK, share)
        found = run.train("test")
        run.close()
    return found


def idle(task: str, device: str, seed: int) -> dict[str, float]:
    """Train by the plain loop and with idle parts, a pass of each in turns; return the seconds of the passes' medians."""
    with tempfile.TemporaryDirectory() as folder:
        keep = functools.partial(sifted, keep=1.0)
        usual = Training(TASKS[task], plain, seed, device, QUICK)
        parts = AllParts(True, folder, TASKS[task], keep, seed, device, QUICK)
        times: dict[Training, list[float]] = {usual: [], parts: []}
        for number, run in in_turns(usual, parts):
            torch.manual_seed(number)  # the distortions of both are the same
            before = run.seconds
            run.run_pass(whole=True)
            times[run].append(run.seconds - before)
        pairs = zip(usual.model.parameters(), parts.model.parameters(), strict=True)
        same = all(torch.equal(one, other) for one, other in pairs)
        parts.close()
    plain_time, idle_time = (statistics.median(of[1:]) for of in times.values())  # the first pass warms up
    return {"plain": plain_time, "idle": idle_time, "same weights": float(same)}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    kind = "cpu" if device == "cpu" else "cuda"
    functions: dict[str, Callable[[int], dict[str, float]]] = {}
    for task in TABLE:
        functions[f"{task}.plain"] = functools.partial(alone, task, kind)
        for share in SHARES:
            functions[f"{task}.all.{round(100 * share)}"] = functools.partial(together, task, share, kind)
        functions[f"{task}.idle"] = functools.partial(idle, task, kind)
    return functions


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record, of the tasks that were run."""
    table = []
    for task, name in TABLE.items():
        if f"{task}.plain" not in runs or f"{task}.idle" not in runs:
            continue
        table += _rows(task, name, runs)
    return table


def _rows(task: str, name: str, runs: harness.Runs) -> list[Row]:
    of = TASKS[task]
    usual, parts = runs[f"{task}.plain"], runs[f"{task}.idle"]
    trainings = [runs[f"{task}.all.{round(100 * share)}"] for share in SHARES]
    count = min(len(found["metric"]) for found in (usual, *trainings))
    reached = []
    for seed in range(count):
        goal = usual["metric"][seed]
        good = [
            found["seconds"][seed]
            for found in trainings
            if (found["metric"][seed] >= goal if of.higher else found["metric"][seed] <= goal)
        ]
        reached.append(min(good, default=math.nan))
    times = [
        (own, plain) for own, plain in zip(reached, usual["seconds"], strict=False) if not math.isnan(own)
    ]
    found: list[Row] = []
    if times:
        own, plain = (list(values) for values in zip(*times, strict=True))
        found.append(
            Row(f"{name}: time to the plain loop's final {of.metric}", own, plain, "plain loop", "s", None)
        )
    title = f"{name}: seeds of {count} in which it is reached"
    found.append(Row(title, [len(times)], None, "", "", None))
    for share, training in ((0.55, trainings[1]), (1.0, trainings[-1])):
        label = f"{name}, {share:.0%} of the samples"
        own, plain = training["metric"], usual["metric"]
        found.append(Row(f"{label}: {of.metric}", own, plain, "plain loop", "", None))
        found.append(Row(f"{label}: time", training["seconds"], usual["seconds"], "plain loop", "s", None))
    found.append(
        Row(
            f"{name}: a pass with idle parts",
            parts["idle"],
            parts["plain"],
            "plain loop",
            "s",
            f"ratio <= {IDLE_BAR}",
        )
    )
    found.append(
        Row(
            f"{name}: idle parts leave the weights bit for bit",
            parts["same weights"],
            None,
            "",
            "",
            "ours >= 1",
        )
    )
    return found


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
