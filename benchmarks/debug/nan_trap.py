"""Cost of the trap for NaN and infinity in each step, compared with autograd's anomaly mode, and the causes it names.

A bare and a watched model train in turns in one process, ten steps each, on one thread; the overhead is the median of
the ratios of neighbouring blocks.  Then a NaN is put into one sample of the output of a random module, in the forward
or backward pass of a random step, 20 times over four models.  The NaN counts as named if the finding has its step,
direction, module and sample.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import harness
from ..harness import Runs
from ..record import Row
from ..zoo import Job
from .watched import Training

CLAIM = "nan_trap"
QUICK = False
NETWORKS = ("mlp", "conv", "transformer")
BLOCKS, STEPS = 20, 10
INJECTED = 20
LENGTH = 8
"""Steps of a training that a NaN is put into."""


# -- what it costs ------------------------------------------------------------------------------------


def cost(name: str, anomaly: bool, seed: int) -> dict[str, float]:
    """Measure the overhead of the trap, or of anomaly mode."""
    from loopwise.debug import Watch

    torch.set_num_threads(1)
    bare, watched = Training(name, seed), Training(name, seed)
    inside: Callable[[], Any] = contextlib.nullcontext
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        if anomaly:
            inside = torch.autograd.detect_anomaly
        else:
            watch = stack.enter_context(
                Watch(
                    watched.model,
                    watched.optimizer,
                    run=f"{folder}/run",
                    collections=(),
                    rules=False,
                    profile=False,
                )
            )
            watched.after = lambda loss: watch.step(loss=loss)
        ratios, times = [], []
        for block in range(1 + (BLOCKS // 4 if QUICK else BLOCKS)):
            seconds = [0.0, 0.0]
            for turn in (0, 1) if block % 2 else (1, 0):
                torch.manual_seed(block)  # both drop out the same
                with inside() if turn else contextlib.nullcontext():
                    seconds[turn] = timed((bare, watched)[turn])
            ratios.append(seconds[1] / seconds[0])
            times.append(seconds[0] / STEPS)
        for a, b in zip(bare.model.parameters(), watched.model.parameters(), strict=True):
            assert torch.equal(a, b)
    return {
        "overhead, %": 100 * (statistics.median(ratios[1:]) - 1),
        "bare, ms": 1e3 * statistics.median(times[1:]),
    }


def timed(training: Training) -> float:
    start = time.perf_counter()
    for _ in range(STEPS):
        training()
    return time.perf_counter() - start


# -- what it names ------------------------------------------------------------------------------------


class Backward(torch.autograd.Function):
    """Operation that passes a tensor on, and makes the gradient of one sample NaN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, sample: int) -> torch.Tensor:
        ctx.sample = sample
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        gradient = gradient.clone()
        gradient[ctx.sample] = torch.nan
        return gradient, None


def forward(x: torch.Tensor, sample: int) -> torch.Tensor:
    """Make the values of one sample NaN by a division."""
    keep = torch.ones(len(x), *[1] * (x.dim() - 1))
    keep[sample] = 0
    return x * (keep / keep)


def spoil(module: nn.Module, how: Callable[..., torch.Tensor], sample: int, now: Callable[[], bool]) -> None:
    """Apply ``how`` to the output of a module at one step."""
    original = module.forward

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if not now():
            return output
        if isinstance(output, tuple):
            return (how(output[0], sample), *output[1:])
        return how(output, sample)

    module.forward = spoilt  # type: ignore[method-assign]


def candidates(job: Job, backward: bool) -> list[str]:
    """Return the modules whose output the loss depends on, and which the gradient passes through."""
    names: list[str] = []
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: note(name, out))
        for name, module in job.model.named_modules()
        if name
    ]

    def note(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if first.requires_grad or not backward:
            names.append(name)

    job.model(job.batch(0)[0])
    for handle in handles:
        handle.remove()
    return names


def named(seed: int) -> dict[str, float]:
    """Count the NaNs, of 20 put into random places, that the trap names exactly."""
    torch.set_num_threads(1)
    draw = random.Random(seed)
    hits = 0
    for number, (kind, backward) in zip(
        range(INJECTED),
        itertools.cycle(itertools.product(("mlp", "cnn", "rnn", "transformer"), (False, True))),
    ):
        job = Job(kind, 1000 * seed + number)
        name = draw.choice(candidates(job, backward))
        at, sample = draw.randrange(LENGTH), draw.randrange(16)
        findings = trained(job, name, at, sample, backward)
        wanted = f"samples {sample}"
        right = [
            f
            for f in findings
            if (f.step, f.tensors, f.what.startswith("the gradient of"), wanted in f.what)
            == (at, (name,), backward, True)
        ]
        hits += bool(right)
        if not right:
            print(
                f"{kind}: {name}, step {at}, {'backward' if backward else 'forward'}: {findings}",
                file=sys.stderr,
            )
    return {"named": hits}


def trained(job: Job, name: str, at: int, sample: int, backward: bool) -> list[Any]:
    """Train with a NaN and return the first finding."""
    from loopwise.debug import Watch

    optimizer, step = job.optimizer(job.model.parameters()), 0
    spoil(job.model.get_submodule(name), Backward.apply if backward else forward, sample, lambda: step == at)
    with (
        tempfile.TemporaryDirectory() as folder,
        Watch(
            job.model,
            optimizer,
            run=f"{folder}/run",
            rules=False,
            collections=["losses"],
            profile=False,
            on_finding=lambda finding: None,
        ) as watch,
    ):
        for step in range(at + 1):
            x, y = job.batch(step)
            optimizer.zero_grad()
            loss = job.criterion(job.model(x), y)
            loss.backward()
            optimizer.step()
            watch.step(loss=loss)
    return watch.findings[:1]


# -- the claim ----------------------------------------------------------------------------------------


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    warnings.simplefilter("ignore")  # anomaly mode says that it is slow
    functions: dict[str, Callable[[int], dict[str, float]]] = {"named": named}
    for name in NETWORKS:
        functions[f"{name}.trap"] = functools.partial(cost, name, False)
        functions[f"{name}.anomaly"] = functools.partial(cost, name, True)
    return functions


def rows(runs: Runs) -> list[Row]:
    table = [
        Row(
            f"{name}: overhead of a step",
            runs[f"{name}.trap"]["overhead, %"],
            runs[f"{name}.anomaly"]["overhead, %"],
            "detect_anomaly",
            "%",
            "ours <= 3",
        )
        for name in NETWORKS
        if f"{name}.trap" in runs and f"{name}.anomaly" in runs
    ]
    if "named" in runs:
        label = f"named exactly, of {INJECTED} NaNs in a random module, forward or backward"
        table.append(Row(label, runs["named"]["named"], None, "", "count", f"ours >= {INJECTED}"))
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
