"""Simulation: with the reference's proportions, a data group makes a step as many times as fast as its authors publish.

Workers sleep in place of decoding images, so two processors suffice for any number of them; times are the
reference's.  PyTorch: a batch takes 8 * 1193 ms in one of 8 workers.  32 workers of another machine, each 1.62 times as fast
as one of those 8, take over.  Equally fast ones would give 4.0 times, not the published 6.48.  TensorFlow: 192 ms a step with
the workers of 96 processors, and a step of 86 ms once 144 processors of the same speed (factor 1) are added: 2.23 times.  A
worker stands for 8 processors there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from torch.utils.data import Dataset

from .. import harness
from ..record import Row

CLAIM = "feed_reference"
QUICK = False
FACTOR = 1.62
"""Work of a worker on the added machine, of that of a worker beside the accelerator."""
REFERENCES = {
    "PyTorch": ((8, 8 * 1.193, 0.05), (32, 8 * 1.193 / FACTOR, 0.05), 6.48),
    "TensorFlow": ((12, 12 * 0.192, 0.086), (30, 12 * 0.192, 0.086), 2.23),
}
"""Name -> before and after (workers, seconds of a batch in a worker, seconds of a step with data), and the published ratio."""


class Sleeping(Dataset[int]):
    """Batches that take a fixed time in a worker."""

    def __init__(self, seconds: float, count: int) -> None:
        self.seconds, self.count = seconds, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        time.sleep(self.seconds)
        return index


def step_time(workers: int, seconds: float, step: float) -> float:
    """Return the seconds of a step, after the batches that were fetched ahead."""
    from loopwise.feed import RemoteDataLoader

    ahead, steps = 2 * workers, workers * (1 if QUICK else 3)
    dataset = Sleeping(seconds, ahead + steps)
    loader: Any = RemoteDataLoader(dataset, batch_size=None, num_workers=workers)
    start = 0.0
    for number, _ in enumerate(loader, 1):
        time.sleep(step)
        if number == ahead:
            start = time.perf_counter()
    return (time.perf_counter() - start) / steps


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""

    def one(before: tuple[int, float, float], after: tuple[int, float, float]) -> dict[str, float]:
        return {"before": 1e3 * step_time(*before), "after": 1e3 * step_time(*after)}

    return {name: lambda seed, pair=value[:2]: one(*pair) for name, value in REFERENCES.items()}


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    table = []
    for name, (before, after, published) in REFERENCES.items():
        factor = before[1] / after[1]
        told = f"{name}, {before[0]} and {after[0]} workers, factor per worker {factor:.2f}"
        ratios = [b / a for b, a in zip(runs[name]["before"], runs[name]["after"], strict=True)]
        off = [100 * abs(ratio / published - 1) for ratio in ratios]
        table.append(
            Row(f"simulation of {told}: speed-up; published {published}", ratios, None, "", "", None)
        )
        table.append(
            Row(f"simulation of {name}: away from the published speed-up", off, None, "", "%", "ours <= 10")
        )
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
