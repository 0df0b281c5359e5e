"""Faults that the rules of ``loopwise.debug`` and two peers detect and name, and their alarms in healthy trainings.

The peers are torch-audit 0.3.0 and trainscope 1.8.1 (``pip install --no-deps torch-audit==0.3.0 trainscope==1.8.1``), each
with the settings of its documentation.  All sides judge the same trainings of single models: the reported third of the
faults of the zoo, and 12 healthy trainings, with a seed that is drawn when the benchmark runs and saved with the record.
Faults that bring no optimizer get the one that ``rules`` draws.

torch-audit is added by ``autopatch``, and its ``backward`` is called for the phase that ``autopatch`` leaves out.  It audits
each 1000th update by default, here the first one; a second row has ``every_n_steps=1``, which its README names for every
step.  Its alarms are findings of WARN or above; INFO is a finding only.  trainscope records each step between
backward and update.  Its alarms are spikes that ``step`` returns (its change-point detector also calls a loss that falls
quickly a spike), warnings that it logs, and an explosion in ``trainscope report``; the early-warning signals of that report
are findings only.  Ours are findings of a ``Watch`` with all rules; alarms are warning or critical.

A fault is detected if there is any alarm.  Since some alarms are there in healthy trainings as well, such as
torch-audit's hints for tensor cores and weight decay, another row leaves out those with a name that the same side raised in
one of the three healthy trainings of the same kind.  A fault is named if an alarm's text names its cause: ours by the rules
that the zoo lists with the fault, and peers' by the table ``NAMED``.  It was filled after a look at what they printed with seed 1, in
favour of the peer in case of doubt: for a learning rate that is too large, for example, a large gradient counts, as its
advice is to check the learning rate.

traincheck 0.2.0 is left out.  Its instrumentation of torch ends with "RuntimeError: Found no NVIDIA driver" on a machine
without a GPU if torch is built for CUDA.  Past that, 20 steps of the smallest model take 24 s of CPU time to trace and 36 s to
check, after a healthy run was traced and its invariants inferred; trainings of the zoo have 80 to 300 steps.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import harness
from ..harness import Runs
from ..record import Row
from ..zoo import FAULTS, Job, made
from ..zoo.job import Unwatched, WithForward
from ..zoo.thirds import drawn_seed, of_third
from .rules import KINDS, OPTIMIZERS, of_fault

CLAIM = "rules_peers"
QUICK = False
REPORTED = list(of_third("report", {name: fault for name, fault in FAULTS.items() if fault.kind in KINDS}))
HEALTHY = [(kind, optimizer) for kind in KINDS for optimizer in ("sgd", "adam", "adamw")]
ALARMS = {"warning", "critical", "WARN", "ERROR", "FATAL", "spike", "explosion"}
"""Severities that are alarms; others are findings only."""
NAMED: dict[str, dict[str, set[str]]] = {
    "torch-audit": {
        "relus_of_a_cnn_that_never_open": {"TA105"},
        "weights_that_grow_from_layer_to_layer": {"TA102"},
        "learning_rate_too_large_for_a_transformer": {"TA100", "TA102"},
        "layer_left_out": {"TA500"},
        "pixels_up_to_255": {"TA301"},
        "everything_masked": {"TA100"},
    },
    "trainscope": {"everything_masked": {"non_finite_loss", "explosion"}},
}
"""Peer -> fault -> alarms that name its cause."""
Alarm = tuple[str, str, str]
"""Name, severity and text."""


@dataclass
class _Loss:
    """Loss whose backward pass is the one of a job."""

    backward: Callable[[], None]


def of_loopwise(job: Job) -> list[Alarm]:
    """Return the findings of a ``Watch`` with all rules."""
    with tempfile.TemporaryDirectory() as folder:
        watch = job.run(f"{folder}/run")
    return [(finding.rule, finding.severity, str(finding)) for finding in watch.findings]


def of_torch_audit(job: Job, every: int = 1000) -> list[Alarm]:
    """Return the findings of torch-audit, which audits one update of ``every``."""
    from torch_audit import autopatch

    model, optimizer = job.made()
    audited = WithForward(model, job.forward) if job.forward else model
    auditor = autopatch(
        audited, optimizer=optimizer, every_n_steps=every, fail_level="ERROR", run_static=True, run_init=True
    )

    def backward(loss: torch.Tensor, step: int) -> None:
        auditor.backward(_Loss(lambda: job.backward(loss, step)))

    job.loop(model, optimizer, audited, Unwatched(), backward)
    findings = auditor.finish().findings
    auditor.unpatch()
    return [(f.rule_id, f.severity.value, f"{f.module_path}: {f.message}") for f in findings]


def of_trainscope(job: Job) -> list[Alarm]:
    """Return the spikes and warnings of trainscope, and the signals of its report."""
    from trainscope import TrainScope
    from trainscope.core.config import TrainScopeConfig
    from trainscope.report import build_run_report

    alarms: list[Alarm] = []
    model, optimizer = job.made()
    logger = logging.getLogger("trainscope")

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        alarms.append(("non_finite_loss" if "Non-finite" in text else "log", "warning", text))
        return False

    logger.addFilter(keep)
    with tempfile.TemporaryDirectory() as folder:
        scope = TrainScope(model, optimizer, config=TrainScopeConfig(run_dir=folder)).attach()

        def backward(loss: torch.Tensor, step: int) -> None:
            job.backward(loss, step)
            if spike := scope.step(loss.item(), batch_index=step):
                text = f"Spike at step {spike['step']}, score={spike['spike_score']:.2f}"
                alarms.append(("spike", "spike", text))

        job.loop(model, optimizer, job.forward or model, Unwatched(), backward)
        scope.detach()
        report = asyncio.run(build_run_report(next(Path(folder).iterdir())))
    logger.removeFilter(keep)
    found = report["signal_signature"]
    alarms += [(name, "signal", f"crossed at step {found['first_steps'][name]}") for name in found["fired"]]
    if found["fired"] and found["explosion_step"] is not None:  # the report has it beside signals only
        alarms.append(("explosion", "explosion", f"Objective explosion at step {found['explosion_step']}"))
    return alarms


SIDES: dict[str, Callable[[Job], list[Alarm]]] = {
    "ours": of_loopwise,
    "torch-audit": of_torch_audit,
    "torch-audit, every step": functools.partial(of_torch_audit, every=1),
    "trainscope": of_trainscope,
}


def sound(kind: str, optimizer: str, seed: int) -> Job:
    """Return a healthy training."""
    evaluations = 20 * (kind != "transformer")
    return made(kind, seed, steps=160, optimizer=OPTIMIZERS[optimizer], evaluations=evaluations)


def _raised(side: str, job: Job) -> tuple[set[str], set[str]]:
    """Return the names of the alarms and of all findings of a side."""
    raised = SIDES[side](job)
    return {name for name, severity, _ in raised if severity in ALARMS}, {name for name, *_ in raised}


def judged(seed: int) -> dict[str, float]:
    """Return the shares of the faults and the counts of the healthy trainings for each side."""
    torch.set_num_threads(1)
    seed = drawn_seed("report", seed)
    counts, usual = Counter[str](), {(side, kind): set[str]() for side in SIDES for kind in KINDS}
    for kind, optimizer in HEALTHY[:: 3 if QUICK else 1]:
        for side in SIDES:
            alarms, findings = _raised(side, sound(kind, optimizer, seed))
            usual[side, kind] |= alarms
            counts[f"{side}: healthy alarmed"] += bool(alarms)
            counts[f"{side}: healthy alarms"] += len(alarms)
            counts[f"{side}: healthy findings"] += len(findings)
            print(f"healthy {kind}, {optimizer} {seed}: {side}: {sorted(alarms)}", file=sys.stderr)
    faults = REPORTED[:: 4 if QUICK else 1]
    for name in faults:
        for side in SIDES:
            alarms, findings = _raised(side, of_fault(name, seed))
            own = alarms - usual[side, FAULTS[name].kind]
            counts[f"{side}: detected"] += bool(alarms)
            counts[f"{side}: detected beyond"] += bool(own)
            counts[f"{side}: any"] += bool(findings)
            names = FAULTS[name].named if side == "ours" else NAMED[side.partition(",")[0]].get(name, ())
            counts[f"{side}: named"] += not alarms.isdisjoint(names)
            print(f"{name} {seed}: {side}: {sorted(alarms)}, beyond healthy: {sorted(own)}", file=sys.stderr)
    shares = {key: float(n) if "healthy" in key else 100 * n / len(faults) for key, n in counts.items()}
    return {"faults": float(len(faults)), "runs": len(HEALTHY) / (3 if QUICK else 1), **shares, "seed": seed}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    warnings.simplefilter("ignore")  # of numbers that the faults make
    return {"single.report": judged}


QUANTITIES = {
    "detected": "faults, reported: detected by an alarm",
    "detected beyond": "faults, reported: detected by an alarm that healthy trainings of the kind lack",
    "any": "faults, reported: with any finding",
    "named": "faults, reported: named by an alarm",
    "healthy alarmed": "healthy trainings: with an alarm",
    "healthy alarms": "healthy trainings: alarms by name",
    "healthy findings": "healthy trainings: findings by name",
}


def rows(runs: Runs) -> list[Row]:
    table, values = [], runs["single.report"]
    for key, text in QUANTITIES.items():
        healthy = key.startswith("healthy")
        quantity = f"{values['runs' if healthy else 'faults'][0]:.0f} {text}"
        for peer in list(SIDES)[1:]:
            ours, theirs = values[f"ours: {key}"], values[f"{peer}: {key}"]
            table.append(Row(quantity, ours, theirs, peer, "count" if healthy else "%", None))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
