"""Cost of profiling: the sampler's share of a core and its punctuality, the phases of a step, and all together.

The sampler's processor time is that of its thread's own clock.  The delay of a sample is the time from its due time to
the moment it is taken.  For the other numbers a bare and a profiled training take turns, some steps each, on one thread;
the sampler has the machine's other cores, as in a training.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import harness
from ..harness import Runs
from ..record import Row
from .watched import Training

CLAIM = "profiler"
QUICK = False
SECONDS, INTERVAL = 60.0, 0.5
CALLS = 5000
"""Steps that are kept account of, at a time."""


class Loop:
    """Training over a ``DataLoader``; a call is a step."""

    def __init__(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        if name == "mlp":
            training = Training("mlp", seed)
            self.model, samples, batch = training.model, training.batch.repeat(8, 1), len(training.batch)
        else:
            self.model = nn.Sequential(
                nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
            )
            samples, batch = torch.randn(2048, 256), 64
        data = torch.utils.data.TensorDataset(samples, torch.arange(len(samples)) % 10)
        self.loader = torch.utils.data.DataLoader(data, batch_size=batch)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        self.batches = self.forever()

    def forever(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def __call__(self) -> None:
        inputs, targets = next(self.batches)
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(inputs), targets).backward()
        self.optimizer.step()


def sampling(beside: bool, seed: int) -> dict[str, float]:
    """Measure a sampler alone, or beside a training."""
    from loopwise.debug.profiler import reading
    from loopwise.debug.profiler.sampler import Sampler
    from loopwise.run import Run

    torch.set_num_threads(1)
    training = Loop("small", seed)
    with tempfile.TemporaryDirectory() as folder:
        with Run(f"{folder}/run") as run:
            sampler = Sampler(run, INTERVAL).start()
            clock = time.pthread_getcpuclockid(sampler._thread.ident)
            start, spent = time.monotonic(), time.clock_gettime(clock)
            while (left := start + (15.0 if QUICK else SECONDS) - time.monotonic()) > 0:
                training() if beside else time.sleep(left)
            spent, taken = time.clock_gettime(clock) - spent, time.monotonic() - start
            sampler.close()
        late = 1e3 * reading.sessions(f"{folder}/run")[0].system["late"]
    assert len(late) + sampler.missed >= int(taken / INTERVAL) - 1
    return {
        "share, %": 100 * spent / taken,
        "late, max, ms": float(late.max()),
        "late, p99, ms": float(np.percentile(late, 99)),
        "missed": float(sampler.missed),
        "sample, ms": 1e3 * spent / len(late),
    }


def phases(seed: int) -> dict[str, float]:
    """Measure the microseconds of a step's bookkeeping, without the calls of hooks."""
    from loopwise.debug.profiler.phases import Phases

    kept = Phases(lambda: 0.0)

    def block() -> float:
        start = time.thread_time()
        for step in range(CALLS):
            kept.begin()
            kept.loaded(kept.loads() or 0.0, 0)
            kept.forward_begins()
            kept.forward_ends(True)
            kept.optimizer_begins()
            kept.optimizer_ends()
            kept.end(step, "train")
        spent = time.thread_time() - start
        kept.drain()
        return spent

    return {"account, us": 1e6 * statistics.median(block() for _ in range(20)) / CALLS}


def together(name: str, seed: int) -> dict[str, float]:
    """Run a bare and a profiled training in turns, and return the overhead."""
    torch.set_num_threads(1)
    loop = Loop(name, seed)
    steps = 20 if name == "mlp" else 400
    blocks = []
    with tempfile.TemporaryDirectory() as folder:
        for block in range(1 + (4 if QUICK else 8 if name == "mlp" else 16)):
            times = [0.0, 0.0]
            for turn in (0, 1) if block % 2 else (1, 0):
                times[turn] = timed(loop, steps, f"{folder}/{block}" if turn else None)
            blocks.append(times)
    bare, profiled = zip(*blocks[1:], strict=True)  # the first block warms up
    return {
        "bare, ms": 1e3 * statistics.median(bare),
        "overhead, %": 100 * (statistics.median(p / b for b, p in blocks[1:]) - 1),
        "overhead, us": 1e6 * statistics.median(p - b for b, p in blocks[1:]),
        "profiled, ms": 1e3 * statistics.median(profiled),
    }


def timed(loop: Loop, steps: int, path: str | None) -> float:
    """Return the seconds of a step, profiled if there is a path."""
    from loopwise.debug.profiler import Profile, Profiler
    from loopwise.run import Run

    with contextlib.ExitStack() as stack:
        profiler = None
        if path is not None:
            run = stack.enter_context(Run(path))
            profiler = Profiler({"": loop.model}, {"": loop.optimizer}, run, Profile())
            stack.callback(profiler.close)
        start = time.perf_counter()
        for step in range(steps):
            if profiler is not None:
                profiler.begin(step, "train")
            loop()
            if profiler is not None:
                profiler.end(step, "train", {})
        return (time.perf_counter() - start) / steps


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases, all on the CPU: name -> function that runs the case with a seed."""
    return {
        "sampler.idle": functools.partial(sampling, False),
        "sampler.training": functools.partial(sampling, True),
        "phases.account": phases,
        "together.small": functools.partial(together, "small"),
        "together.mlp": functools.partial(together, "mlp"),
    }


def rows(runs: Runs) -> list[Row]:
    table = []
    for case, where in {"sampler.idle": "idle", "sampler.training": "beside a training"}.items():
        for key, label, unit, bar in (
            ("share, %", "share of a core", "%", "ours <= 0.5"),
            ("late, max, ms", "latest sample", "ms", "ours <= 50"),
            ("late, p99, ms", "lateness, 99th percentile", "ms", None),
            ("missed", "missed samples", "count", "ours <= 0"),
            ("sample, ms", "a sample", "ms", None),
        ):
            label = f"sampler at {1e3 * INTERVAL:.0f} ms, {where}: {label}"
            table.append(Row(label, runs[case][key], None, "", unit, bar))
    account = runs["phases.account"]["account, us"]
    table.append(Row("phases: account of a step", account, None, "", "us", "ours <= 10"))
    bare = statistics.median(runs["together.small"]["bare, ms"])
    share = [value / 10 / bare for value in account]
    table.append(Row(f"phases: account of a step, of {bare:.2g} ms", share, None, "", "%", None))
    for case in ("together.small", "together.mlp"):
        values = runs[case]
        label = f"the default profile, steps of {statistics.median(values['bare, ms']):.2g} ms"
        table.append(Row(f"{label}: overhead", values["overhead, %"], None, "", "%", "ours <= 1"))
        table.append(Row(f"{label}: a step", values["overhead, us"], None, "", "us", None))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
