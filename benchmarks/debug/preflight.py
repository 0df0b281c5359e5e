"""Faults that ``preflight`` detects and names before a training, its false positives, and its time beside torchtest2's.

Thirds: faults of the zoo by their order, and drawn faults by theirs.  The first third was built on, thresholds were chosen
on the second, the third is reported; the seeds of what is reported are drawn when it runs, and are in the record.  A zoo's
fault is in reach of both if it shows in model, optimizer, loss or first batch; rows say so.  Jobs of the zoo and healthy
setups also have a training step, which ``preflight`` gets (``step=``) and torchtest2 cannot look at.
Trainings of two models or two ranks are left out.  A fault is detected if there is a finding (torchtest2: WARN or FAIL),
of any severity; it is named if a rule that names its cause is among the findings.  Healthy setups are of 14 kinds.  Both get the
same arguments and run in turns, in one process, with one thread, after one call that is not counted; healthy setups are
looked at with the training step, whose findings count, and without it.
torchtest2 0.1 has to be installed (``pip install --no-deps torchtest2==0.1.0``).
"""

from __future__ import annotations

import contextlib
import functools
import io
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from .. import harness
from ..harness import Runs
from ..record import Row
from ..zoo import FAULTS, Job, injected
from ..zoo.job import MODELS, WithForward
from ..zoo.thirds import THIRDS, drawn_seed, of_third
from .preflight_faults import PLANTED, faulty
from .preflight_setups import SETUPS, Drawn, drawn

CLAIM = "debug_preflight"
QUICK = False
LOOP = ("before_backward", "backward", "update", "set_mode")
ROUNDS = 2
"""Draws of each healthy setup."""


def our_report(setup: Drawn) -> tuple[Any, float]:
    """Return the report of ``preflight`` and the seconds."""
    from loopwise.debug import preflight

    criterion = setup.criterion

    def loss(model: Any, batch: Any) -> Any:
        return criterion(model(*batch[0]), batch[1])

    single = len(setup.inputs) == 1
    batch = (setup.inputs[0], setup.target) if single else (setup.inputs, setup.target)
    optimizer = setup.made()
    start = time.perf_counter()
    report = preflight(
        setup.model, batch, criterion if single else loss, optimizer, step=setup.step, **setup.expected
    )
    return report, time.perf_counter() - start


def ours(setup: Drawn) -> tuple[set[str], Counter[str], float]:
    """Return the rules and the severities of our findings, and the seconds."""
    report, seconds = our_report(setup)
    return {f.rule for f in report.findings}, Counter(f.severity for f in report.findings), seconds


def their_report(setup: Drawn) -> tuple[Any, float]:
    """Return the report of torchtest2 and the seconds."""
    import torchtest2

    inputs = setup.inputs[0] if len(setup.inputs) == 1 else setup.inputs
    optimizer = setup.made()
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        report = torchtest2.check_model(
            setup.model,
            inputs,
            setup.target,
            loss_fn=setup.criterion,
            optimizer=optimizer,
            **setup.expected,
        )
    return report, time.perf_counter() - start


def theirs(setup: Drawn) -> tuple[Counter[str], float]:
    """Return the statuses of torchtest2's checks, and the seconds."""
    report, seconds = their_report(setup)
    return Counter(r.status.name for r in report.results), seconds


def of_zoo(name: str, seed: int) -> Drawn:
    """Return what a fault of the zoo is before its training."""
    job = injected(name, seed)
    model, optimizer = job.made()
    x, y = job.batch(0)
    forward = job.forward
    if forward is not None:
        model = WithForward(model, forward)
    setup = Drawn(model.train(), (x,), y, job.criterion, job.optimizer, held=optimizer)
    setup.step = _step_of(job)
    return setup


def _step_of(job: Job) -> Callable[[Any, Any, Any], torch.Tensor]:
    """Return the training step of a job, with the model and the optimizer that it is called with."""
    number = -1

    def step(model: Any, batch: Any, optimizer: Any) -> torch.Tensor:
        nonlocal number
        number += 1
        kept, job.model = job.model, getattr(model, "inner", model)  # faults look the model up there
        try:
            return job.trained_on(batch, number, model, optimizer, model, job.backward)
        finally:
            job.model = kept

    return step


def _usual_step(setup: Drawn) -> Callable[[Any, Any, Any], torch.Tensor]:
    """Return the usual training step of a setup."""

    def step(model: Any, batch: Any, optimizer: Any) -> torch.Tensor:
        inputs, target = batch
        optimizer.zero_grad()
        loss = setup.criterion(model(*inputs) if isinstance(inputs, tuple) else model(inputs), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return step


def in_reach(name: str, seed: int) -> bool:
    """Return whether a fault of the zoo shows in model, optimizer, loss or first batch."""
    job, plain = injected(name, seed), Job(FAULTS[name].kind, seed)
    if any(key in vars(job) for key in LOOP) or job.evaluations:
        return False
    same = (job.criterion, job.optimizer, job.forward) == (plain.criterion, plain.optimizer, plain.forward)
    same &= "made" not in vars(job) and str(job.model) == str(plain.model)
    if not same:
        return True
    states = zip(job.model.state_dict().values(), plain.model.state_dict().values(), strict=True)
    if not all(torch.equal(a, b) for a, b in states):
        return True
    if [p.requires_grad for p in job.model.parameters()] != [
        p.requires_grad for p in plain.model.parameters()
    ]:
        return True
    settings = [[str(vars(m).get("momentum")) for m in each.model.modules()] for each in (job, plain)]
    if settings[0] != settings[1]:
        return True
    return not all(torch.equal(a, b) for a, b in zip(job.batch(0), plain.batch(0), strict=True))


def _warm() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ours(drawn("vectors", 0))
    theirs(drawn("vectors", 0))


def _judged(
    counts: Counter[str], times: Counter[str], name: str, named: set[str], make: Callable[[], Drawn]
) -> None:
    """Judge one fault by both; each gets a setup of its own."""
    rules, severities, seconds = ours(make())
    times["ours"] += seconds
    try:
        statuses, others = theirs(make())
    except Exception as error:  # counted as not detected
        print(f"torchtest2 raises for {name}: {error!r}", file=sys.stderr)
        statuses, others = Counter(), 0.0
    times["theirs"] += others
    counts["faults"] += 1
    counts["detected"] += bool(rules)
    counts["serious"] += severities["critical"] + severities["warning"] > 0
    counts["named"] += bool(rules & named)
    counts["theirs"] += statuses["FAIL"] + statuses["WARN"] > 0
    if not rules & named:
        print(f"{name}: {', '.join(sorted(rules)) or 'missed'}", file=sys.stderr)


def _shares(counts: Counter[str], times: Counter[str], seed: int) -> dict[str, float]:
    keys = ("detected", "serious", "named", "theirs")
    shares = {f"{key}, %": 100 * counts[key] / max(counts["faults"], 1) for key in keys}
    times_of = {f"seconds {key}": value for key, value in times.items()}
    return {"faults": counts["faults"], **shares, **times_of, "seed": seed}


def zoo(third: str, seed: int) -> dict[str, float]:
    """Return the shares of a third of the zoo's faults, and of those in reach."""
    _warm()
    seed = drawn_seed(third, seed)
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    times: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    of_job = {name: fault for name, fault in FAULTS.items() if fault.kind in MODELS}
    for name, fault in of_third(third, of_job).items():
        reach = in_reach(name, seed)
        named = {*fault.named, "unsuitable_learning_rate"} if "learning_rate" in name else {*fault.named}
        _judged(counts[reach], times[reach], name, named, functools.partial(of_zoo, name, seed))
    shares = _shares(counts[True], times[True], seed)
    everything = counts[True] + counts[False]
    return {
        **shares,
        **{f"all: {k}": v for k, v in _shares(everything, times[True] + times[False], seed).items()},
    }


def faults(third: str, seed: int) -> dict[str, float]:
    """Return the shares of a third of the drawn faults."""
    _warm()
    seed = drawn_seed(third, seed)
    counts, times = Counter[str](), Counter[str]()
    for name, fault in of_third(third, PLANTED).items():
        for draw in range(1 if QUICK else ROUNDS):
            made = functools.partial(faulty, name, ROUNDS * seed + draw)
            _judged(counts, times, name, {*fault.named}, made)
    return _shares(counts, times, seed)


def healthy(third: str, seed: int) -> dict[str, float]:
    """Count the findings in drawn healthy setups, and the seconds of both."""
    _warm()
    seed = drawn_seed(third, seed)
    counts, times = Counter[str](), Counter[str]()
    for name in SETUPS:
        for draw in range(1 if QUICK else ROUNDS):
            at = ROUNDS * seed + draw
            with_step = drawn(name, at)
            with_step.step = _usual_step(with_step)
            sides: list[Callable[[], Any]] = [
                functools.partial(ours, setup) for setup in (with_step, drawn(name, at))
            ]
            sides.append(functools.partial(theirs, drawn(name, at)))
            order = random.Random(f"{name} {at}").sample(range(len(sides)), len(sides))
            results: Any = {side: sides[side]() for side in order}
            (rules, severities, longer), (_, _, seconds), (statuses, others) = (results[n] for n in range(3))
            counts.update(severities)
            counts["setups"] += 1
            counts["theirs: WARN"] += statuses["WARN"] > 0
            counts["theirs: FAIL"] += statuses["FAIL"] > 0
            times.update({"ours": seconds, "theirs": others, "with the step": longer})
            if severities["critical"] or severities["warning"]:
                print(f"{name} {at}: {', '.join(sorted(rules))}", file=sys.stderr)
    keys = ("setups", "critical", "warning", "info", "theirs: WARN", "theirs: FAIL")
    times_of = {f"seconds {key}": value for key, value in times.items()}
    return {**{key: float(counts[key]) for key in keys}, **times_of, "seed": seed}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    functions: dict[str, Callable[[int], dict[str, float]]] = {}
    for kind in (zoo, faults, healthy):
        for third in THIRDS:
            if kind is not healthy or third != "built":
                functions[f"{kind.__name__}.{third}"] = functools.partial(kind, third)
    return functions


def rows(runs: Runs) -> list[Row]:
    table = []
    for case, values in runs.items():
        kind, _, third = case.partition(".")
        note = THIRDS[third]
        reported = third == "report"

        def held(bar: str, reported: bool = reported) -> str | None:
            return bar if reported else None

        def row(
            what: str, key: str, peer: str | None, unit: str, bar: str | None, values: Any = values
        ) -> None:
            name = "torchtest2" if peer else ""
            table.append(Row(what, values[key], values[peer] if peer else None, name, unit, bar))

        if kind == "healthy":
            label = f"{values['setups'][0]:.0f} healthy setups, {note}"
            row(f"{label}: critical findings, FAIL", "critical", "theirs: FAIL", "count", held("ours <= 0"))
            row(f"{label}: warnings, WARN", "warning", "theirs: WARN", "count", held("ours <= 1"))
            row(f"{label}: time", "seconds ours", "seconds theirs", "s", held("ratio <= 1"))
            row(f"{label}: time with a training step", "seconds with the step", "seconds theirs", "s", None)
            continue
        of = "drawn faults" if kind == "faults" else "faults of the zoo in reach"
        label = f"{values['faults'][0]:.0f} {of}, {note}"
        row(f"{label}: detected", "detected, %", "theirs, %", "%", held("ours >= 60"))
        row(f"{label}: detected by a warning or worse", "serious, %", None, "%", None)
        row(f"{label}: named", "named, %", None, "%", None)
        row(f"{label}: time", "seconds ours", "seconds theirs", "s", held("ratio <= 1"))
        if kind == "zoo":
            label = f"all {values['all: faults'][0]:.0f} faults of the zoo's third, {note}"
            row(f"{label}: detected", "all: detected, %", "all: theirs, %", "%", held("ours >= 60"))
            row(f"{label}: named", "all: named, %", None, "%", None)
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
