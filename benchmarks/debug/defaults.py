"""Cost of ``Watch(model, optimizer, run=...)`` with nothing else said: scalars, health, rules, NaN trap and profile.

A bare and a watched model train in turns in one process, some steps each, on one thread; the threads of the ``Watch`` have
the machine's other cores.  The first steps, which are saved densely, are a part of the time.
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import harness
from ..harness import Runs
from ..record import Row
from .watched import MODELS, Training

CLAIM = "debug_defaults"
QUICK = False
SECONDS = 40.0
"""Seconds that both models train together."""
BLOCK = 0.25
"""Seconds of steps in turn."""


class Gpt(nn.Module):
    """Language model of 12 layers over bytes."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            nn.TransformerEncoderLayer(192, 4, 768, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(12)
        ]
        self.embedding, self.layers, self.head = (
            nn.Embedding(256, 192),
            nn.Sequential(*layers),
            nn.Linear(192, 256),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embedding(x))).mean(1)


def gpt() -> tuple[nn.Module, torch.Tensor]:
    """Return a training with 5.4 M parameters in 147 tensors."""
    return Gpt(), torch.randint(256, (8, 64))


def short() -> tuple[nn.Module, torch.Tensor]:
    """Return a training whose steps take about 5 ms."""
    return nn.Sequential(
        nn.Linear(784, 384), nn.ReLU(), nn.Linear(384, 384), nn.ReLU(), nn.Linear(384, 10)
    ), torch.randn(192, 784)


MODELS |= {"gpt": gpt, "short": short}
LABELS = {
    "mlp": ("MLP of 5 M parameters", 1),
    "conv": ("convolutional net of 5 M", 1),
    "gpt": ("language model of 12 layers", 1),
    "short": ("step of about 5 ms", 3),
}
"""Model -> what the row is called, and the overhead that it may have, in %."""


def overhead(name: str, seed: int) -> dict[str, float]:
    """Train a bare and a watched model in turns, and return the overhead."""
    from loopwise.debug import Watch

    torch.set_num_threads(1)
    bare, watched = Training(name, seed), Training(name, seed)
    for _ in range(3):
        bare()
    start = time.perf_counter()
    for _ in range(5):
        bare()
    steps = max(1, round(BLOCK / ((time.perf_counter() - start) / 5)))
    with tempfile.TemporaryDirectory() as folder:
        watch = Watch(watched.model, watched.optimizer, run=f"{folder}/run", on_finding=lambda finding: None)
        watched.after = lambda loss: watch.step(loss=loss)
        watched()  # kernels in C are compiled
        times = _alternate(bare, watched, steps)
        watch.close()
    ratios = [after / before for before, after in times]
    return {
        "overhead, %": 100 * (sum(after for _, after in times) / sum(before for before, _ in times) - 1),
        "overhead, median block, %": 100 * (statistics.median(ratios) - 1),
        "bare, ms": 1e3 * statistics.median(before for before, _ in times) / steps,
        "saved": float(watch.counts["saved"]),
        "thinned": float(watch.counts["thinned"]),
        "steps": float(watched.taken),
    }


def _alternate(bare: Any, watched: Any, steps: int) -> list[tuple[float, float]]:
    """Return the seconds of each block of bare and of watched steps."""
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + (5.0 if QUICK else SECONDS)
    while time.perf_counter() < end:
        pair = [0.0, 0.0]
        for turn in (0, 1) if len(times) % 2 else (1, 0):
            start = time.perf_counter()
            for _ in range(steps):
                (bare, watched)[turn]()
            pair[turn] = time.perf_counter() - start
        times.append((pair[0], pair[1]))
    return times


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases, all on the CPU: name -> function that runs the case with a seed."""
    return {name: functools.partial(overhead, name) for name in LABELS}


def rows(runs: Runs) -> list[Row]:
    table = []
    for name, (label, bar) in LABELS.items():
        if name in runs:
            values = runs[name]
            table.append(
                Row(
                    f"{label}: overhead of the default Watch",
                    values["overhead, %"],
                    None,
                    "",
                    "%",
                    f"ours <= {bar}",
                )
            )
            table.append(
                Row(
                    f"{label}: the same, median of blocks",
                    values["overhead, median block, %"],
                    None,
                    "",
                    "%",
                    None,
                )
            )
            table.append(Row(f"{label}: a bare step", values["bare, ms"], None, "", "ms", None))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
