"""Faults that ``preflight`` and two peers detect before a training, beside the alarms in the same setups without the faults.

The peers are torchtest2 0.1.0, with the arguments that ``preflight`` gets, and torch-audit 0.3.0, which audits one step of
training by ``autopatch`` with ``every_n_steps=1`` and the other settings of its README
(``pip install --no-deps torchtest2==0.1.0 torch-audit==0.3.0``).  trainscope and traincheck judge whole trainings, and are not
here; see ``rules_peers``.

The faults are the reported third of the drawn ones (`preflight_faults`).  Each is planted into a setup whose kind, sizes,
values and optimizer are drawn by a seed that is drawn when the benchmark runs and saved with the record; its twin is the
same setup without the fault.  An alarm is a finding of a warning or worse: WARN and FAIL of torchtest2; WARN, ERROR and
FATAL of torch-audit.  A fault is detected if there is an alarm.  As torch-audit has alarms in most setups, hints for tensor
cores and weight decay among them, another row counts only alarms with a name that the twin does not have.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable

import torch

from .. import harness
from ..harness import Runs
from ..record import Row
from ..zoo.thirds import drawn_seed, of_third
from .preflight import our_report, their_report
from .preflight_faults import PLANTED, faulty, sound
from .preflight_setups import Drawn

CLAIM = "preflight_peers"
QUICK = False
DRAWS = 3
"""Setups into which each fault is planted."""


def of_preflight(setup: Drawn) -> set[str]:
    """Return the rules of our warnings and critical findings."""
    return {f.rule for f in our_report(setup)[0].findings if f.severity in ("warning", "critical")}


def of_torchtest2(setup: Drawn) -> set[str]:
    """Return the checks that did not pass."""
    return {
        result.name for result in their_report(setup)[0].results if result.status.name in ("WARN", "FAIL")
    }


def of_torch_audit(setup: Drawn) -> set[str]:
    """Return the rules of the findings in one step of training."""
    from torch_audit import autopatch

    model, optimizer = setup.model.train(), setup.made()
    auditor = autopatch(
        model, optimizer=optimizer, every_n_steps=1, fail_level="ERROR", run_static=True, run_init=True
    )
    optimizer.zero_grad()
    auditor.backward(setup.criterion(model(*setup.inputs), setup.target))
    optimizer.step()
    findings = auditor.finish().findings
    auditor.unpatch()
    return {finding.rule_id for finding in findings if finding.severity.value in ("WARN", "ERROR", "FATAL")}


SIDES: dict[str, Callable[[Drawn], set[str]]] = {
    "ours": of_preflight,
    "torchtest2": of_torchtest2,
    "torch-audit": of_torch_audit,
}


def _alarms(side: str, setup: Drawn, label: str) -> set[str]:
    """Return the alarms of a side; an error that it raises is an alarm, and is printed."""
    try:
        alarms = SIDES[side](setup)
    except Exception as error:
        print(f"{label}: {side} raises {error!r}"[:300], file=sys.stderr)
        return {type(error).__name__}
    print(f"{label}: {side}: {sorted(alarms)}", file=sys.stderr)
    return alarms


def judged(seed: int) -> dict[str, float]:
    """Return the shares of the faults, and the counts of their twins with an alarm, for each side."""
    torch.set_num_threads(1)
    seed, counts, faults = drawn_seed("report", seed), Counter[str](), of_third("report", PLANTED)
    cases = [(name, DRAWS * seed + draw) for name in faults for draw in range(1 if QUICK else DRAWS)]
    for name, at in cases:
        for side in SIDES:
            usual = _alarms(side, sound(name, at), f"without {name} {at}")
            alarms = _alarms(side, faulty(name, at), f"{name} {at}")
            counts[f"{side}: detected"] += bool(alarms)
            counts[f"{side}: beyond"] += bool(alarms - usual)
            counts[f"{side}: twins"] += bool(usual)
    shares = {key: float(n) if "twins" in key else 100 * n / len(cases) for key, n in counts.items()}
    return {"faults": float(len(faults)), "setups": float(len(cases)), **shares, "seed": seed}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    warnings.simplefilter("ignore")  # of numbers that the faults make
    return {"drawn.report": judged}


def rows(runs: Runs) -> list[Row]:
    table, values = [], runs["drawn.report"]
    faults, setups = values["faults"][0], values["setups"][0]
    for key, unit, quantity in (
        ("detected", "%", f"{faults:.0f} drawn faults, reported: detected by an alarm"),
        (
            "beyond",
            "%",
            f"{faults:.0f} drawn faults, reported: detected by an alarm that the same setup without the fault lacks",
        ),
        ("twins", "count", f"{setups:.0f} setups without a fault: with an alarm"),
    ):
        for peer in list(SIDES)[1:]:
            table.append(Row(quantity, values[f"ours: {key}"], values[f"{peer}: {key}"], peer, unit, None))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
