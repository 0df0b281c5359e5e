"""Faults that the rules of ``loopwise.debug`` detect and name, and their false positives in healthy trainings.

The faults of the zoo are in thirds by their order: what rules were built on, what thresholds were chosen on, and what is
reported.  While rules were written all faults were looked at with seed 0 and one optimizer, so that what is new to them in
the reported third is drawn when the benchmark runs: the seed, the optimizer of each fault that does not bring its own, and
the healthy trainings.  The seed is in the record.  A fault is detected if one of the rules listed with it has a finding, and
named if such a rule names its cause.  The rules run again over the saved steps and must find the same.
"""

from __future__ import annotations

import functools
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from .. import harness
from ..harness import Runs
from ..record import Row
from ..zoo import FAULTS, Job, injected, made
from ..zoo.job import MODELS
from ..zoo.thirds import THIRDS, drawn_seed, of_third

CLAIM = "rules"
QUICK = False
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": functools.partial(torch.optim.Adam, lr=1e-3),
    "adamw": functools.partial(torch.optim.AdamW, lr=2e-3),
    "rmsprop": functools.partial(torch.optim.RMSprop, lr=1e-3),
    "adagrad": functools.partial(torch.optim.Adagrad, lr=1e-2),
    "nadam": functools.partial(torch.optim.NAdam, lr=1e-3),
}
DTYPES = (None, torch.bfloat16, torch.float64)
"""Float32, bfloat16 by autocast, or float64."""
KINDS = tuple(MODELS)
HEALTHY = 20
"""Healthy trainings of single models in a run; two of two models and two of two ranks come on top."""


def judged(job: Job) -> Any:
    """Return the ``Watch`` of a finished training, after the rules found the same in its saved steps."""
    from loopwise.debug import RULES, open_run

    def ruled(findings: Any) -> list[Any]:
        """Return the findings of rules over saved steps; others are made during training only."""
        return [finding for finding in findings if RULES[finding.rule].source == "saved step"]

    with tempfile.TemporaryDirectory() as folder:
        watch = job.run(f"{folder}/run")
        saved = open_run(f"{folder}/run")
        recorded, again = (ruled(findings) for findings in (saved.findings(), saved.judge()))
        assert str(recorded) == str(again) == str(ruled(watch.findings)), (recorded, again)  # NaN is not NaN
    return watch


def of_fault(name: str, seed: int) -> Any:
    """Return a training with a fault, and with a drawn optimizer unless the fault brings one."""
    if FAULTS[name].kind not in KINDS:
        return injected(name, seed)
    optimizer = random.Random(f"{name} {seed}").choice(list(OPTIMIZERS.values()))
    return injected(name, seed, optimizer=optimizer)


def faults(third: str, seed: int) -> dict[str, float]:
    """Return the shares of a third's faults that are detected and named."""
    torch.set_num_threads(1)
    counts, seed = Counter[str](), drawn_seed(third, seed)
    for name, fault in of_third(third, FAULTS).items():
        rules = {finding.rule for finding in judged(of_fault(name, seed)).findings}
        counts["faults"] += 1
        counts["named"] += bool(rules & {*fault.named})
        counts["detected"] += (hit := bool(rules & {*fault.named, *fault.also}))
        if not rules & {*fault.named}:
            print(f"{'not named' if hit else 'missed'}: {name} {seed}: {', '.join(rules)}", file=sys.stderr)
    shares = {f"{key}, %": 100 * counts[key] / counts["faults"] for key in ("detected", "named")}
    return {"faults": counts["faults"], **shares, "seed": seed}


def sound(number: int, seed: int) -> tuple[str, Any]:
    """Return a healthy training, and what it is."""
    draws = random.Random(f"{number} {seed}")
    kind = "gan" if number >= HEALTHY + 2 else "ddp" if number >= HEALTHY else KINDS[number % len(KINDS)]
    names = ("adam", "rmsprop") if kind == "gan" else tuple(OPTIMIZERS)
    optimizer, dtype = draws.choice(names), draws.choice(DTYPES)
    job = made(kind, 100 * seed + number, steps=160)
    if kind == "gan":
        job.optimizer = OPTIMIZERS[optimizer]
    if isinstance(job, Job):
        job.optimizer, job.evaluations = OPTIMIZERS[optimizer], 20 * (kind != "transformer")
        if dtype is torch.float64:
            job.model.double()
            job.dtype = dtype
        job.autocast = dtype if dtype is torch.bfloat16 else None
    return f"{kind}, {optimizer}, {dtype}, {number} of {seed}", job


def healthy(third: str, seed: int) -> dict[str, float]:
    """Count the findings in healthy trainings that are drawn."""
    torch.set_num_threads(1)
    counts, seed = Counter[str](), drawn_seed(third, seed)
    for number in range(HEALTHY + 4):
        what, job = sound(number, seed)
        counts["runs"] += 1
        for finding in judged(job).findings:
            counts[finding.severity] += 1
            if finding.severity != "info":
                print(f"{what}: {finding}", file=sys.stderr)
    return {**{key: float(counts[key]) for key in ("runs", "critical", "warning", "info")}, "seed": seed}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    warnings.simplefilter("ignore")  # of numbers that the faults make
    functions: dict[str, Callable[[int], dict[str, float]]] = {}
    for third in THIRDS:
        functions[f"faults.{third}"] = functools.partial(faults, third)
        if third != "built":
            functions[f"healthy.{third}"] = functools.partial(healthy, third)
    return functions


def rows(runs: Runs) -> list[Row]:
    table = []
    for case, values in runs.items():
        what, _, third = case.partition(".")
        if what == "faults":
            count, label, unit = values["faults"][0], "faults", "%"
            bars = {"detected, %": ("detected", "ours >= 92"), "named, %": ("named", "ours >= 75")}
        else:
            count, label, unit = values["runs"][0], "healthy trainings", "count"
            most = {"critical": 0, "warning": count / 20}
            bars = {key: (f"{key} findings", f"ours <= {bar:g}") for key, bar in most.items()}
        for key, (quantity, bar) in bars.items():
            title = f"{count:.0f} {label}, {THIRDS[third]}: {quantity}"
            table.append(Row(title, values[key], None, "", unit, bar if third == "report" else None))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
