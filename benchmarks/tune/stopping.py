"""Early stopping: the epochs that it saves, and what it costs the result, on recorded trainings that trials print again."""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import harness
from ..record import Row
from ..tasks.task import cached
from .functions import digits_losses

CLAIM = "tune_stopping"
QUICK = False
TRIALS, EPOCHS, SECONDS = 30, 20, 0.3
"""Trials of a job, epochs of a trial, and the time of an epoch."""
LR = [1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 0.6, 1.0]
MOMENTUM, DROPOUT = [0.0, 0.5, 0.9, 0.99], [0.0, 0.2, 0.4, 0.6]
PROGRAM = """
while read -r line; do
    sleep $2
    echo "$line"
done < "$0.$1"
"""


def _curves() -> dict[str, np.ndarray]:
    fixed = {"width": 64, "batch": 64, "decay": 1e-5}
    curves = [
        digits_losses(fixed | {"lr": lr, "momentum": momentum, "dropout": dropout}, EPOCHS)
        for lr, momentum, dropout in itertools.product(LR, MOMENTUM, DROPOUT)
    ]
    return {"losses": np.array(curves).reshape(len(LR), len(MOMENTUM), len(DROPOUT), EPOCHS)}


def curves() -> np.ndarray:
    """Return the validation losses of trainings on digits, of shape (learning rates, momenta, dropouts, epochs)."""
    return cached("search-curves-v1", _curves)["losses"]


def described(folder: str, seed: int, parallel: int) -> dict[str, Any]:
    """Return the job whose trials print the recorded curves."""
    sizes = {"lr": len(LR), "momentum": len(MOMENTUM), "dropout": len(DROPOUT)}
    return {
        "command": f"sh {folder}/train {{lr}}-{{momentum}}-{{dropout}} {SECONDS}",
        "parameters": {name: {"type": "integer", "low": 0, "high": n - 1} for name, n in sizes.items()},
        "metrics": [{"name": "loss", "regex": r"loss=(\S+)"}],
        "objective": {"metric": "loss", "goal": "minimize"},
        "limits": {"trials": 10 if QUICK else TRIALS, "parallel": parallel},
        "strategy": "random",
        "early_stopping": "auto",
        "seed": seed,
    }


def saved(epochs: Sequence[int], finished: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
    """Return what early stopping saved and lost.

    Args:
        epochs: epochs of each trial.
        finished: final losses of the trials that were not stopped.
        losses: final losses of all trials if none is stopped.
    """
    return {
        "epochs saved": 100 * (1 - sum(epochs) / (EPOCHS * len(epochs))),
        "loss": 100 * (min(finished) / min(losses) - 1),
        "stopped": len(losses) - len(finished),
    }


def stop(seed: int, parallel: int) -> dict[str, float]:
    """Run a job with early stopping, and compare it with the recorded ends of the same trials."""
    from loopwise.tune import job_of, run
    from loopwise.tune.trials import recorded

    table = curves()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train").write_text(PROGRAM)
        for place in np.ndindex(table.shape[:3]):
            lines = [f"epoch={epoch} loss={loss:.6f}\n" for epoch, loss in enumerate(table[place])]
            Path(folder, "train." + "-".join(map(str, place))).write_text("".join(lines))
        run(job_of(described(folder, seed, parallel), "job"), f"{folder}/run")
        trials = recorded(f"{folder}/run")
    assert {trial.state for trial in trials} <= {"finished", "stopped"}
    ends = [table[tuple(t.values[name] for name in ("lr", "momentum", "dropout"))][-1] for t in trials]
    finished = [end for end, trial in zip(ends, trials, strict=True) if trial.state == "finished"]
    return saved([len(trial.reports) for trial in trials], finished, ends)


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    return {
        "one at a time": lambda seed: stop(seed, 1),
        "four at a time": lambda seed: stop(seed, 4),
    }


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    table = []
    for case, found in runs.items():
        table.append(Row(f"{case}: epochs saved", found["epochs saved"], None, "", "%", "ours >= 40"))
        table.append(Row(f"{case}: loss of the best objective", found["loss"], None, "", "%", "ours <= 1"))
        table.append(Row(f"{case}: trials stopped, of {TRIALS}", found["stopped"], None, "", "", None))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
