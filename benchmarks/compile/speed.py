"""Gain of compiling the training step: milliseconds and bytes, compared with eager and torch.compile."""

from __future__ import annotations

import functools
import math
import os
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
from ..models import MODELS
from ..record import Row

CLAIM = "compile"
QUICK = False
THREADS = 1
"""Of torch, as in ``benchmarks/sift.py``."""
STEPS, WARM = 15, 3
FORMS = ("eager", "torch.compile", "ours")
LOW = "torch.compile, autocast"
LANGUAGE = ("gpt-8k", "gpt-32k")
LEARNING_RATE = 1e-4
BUDGET = 0.2
"""Share of the compiled graph's activations that the group ``saved`` keeps."""


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)


def loop(
    model: Any, loss: Any, optimizer: torch.optim.Optimizer, dtype: torch.dtype | None = None
) -> Callable[[Any], torch.Tensor]:
    """Return the usual training step, under autocast if there is a ``dtype``."""

    def compute(batch: Any) -> torch.Tensor:
        return loss(model, batch) if isinstance(batch, dict) else loss(model(batch[0]), batch[1])

    return updating(compute, optimizer, "cpu", dtype)


def updating(
    compute: Callable[[Any], torch.Tensor],
    optimizer: torch.optim.Optimizer,
    device: str,
    dtype: torch.dtype | None,
) -> Callable[[Any], torch.Tensor]:
    """Return a training step around ``compute``, which returns a batch's loss."""

    def step(batch: Any) -> torch.Tensor:
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            value = compute(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return value.detach()

    return step


def made(form: str, model: nn.Module, loss: Any) -> Callable[[Any], torch.Tensor]:
    """Return the training step in one of the ``FORMS``."""
    if form in ("ours", "fast"):
        from loopwise.compile import TrainStep

        return TrainStep(model, loss, optimizer_of(model), precision="mixed" if form == "fast" else "exact")
    if form != "eager":
        model.compile(mode="max-autotune" if form == "max-autotune" else None)
    return loop(model, loss, optimizer_of(model), torch.bfloat16 if form == LOW else None)


def forms_of(name: str) -> tuple[str, ...]:
    """Return the forms of a model's step to time; bfloat16 only if the processor multiplies it."""
    if name not in LANGUAGE:
        return FORMS
    from loopwise.devices import native_dtype

    low = native_dtype(torch.device("cpu")) == torch.bfloat16
    return (*FORMS, "max-autotune", *(("fast", LOW) if low else ()))


def timed(name: str, seed: int) -> dict[str, float]:
    """Measure the median milliseconds of a step in each form, in turns, and the seconds to the first step.

    The milliseconds are processor time, which equals wall-clock time for one thread on a quiet machine.
    """
    torch.set_num_threads(THREADS)
    torch._dynamo.config.recompile_limit = 64
    steps, quantities = {}, {}
    forms = forms_of(name)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOOPWISE_CACHE"] = folder  # measured anew in each run
        for form in forms:
            torch.manual_seed(seed)
            model, loss, batch = MODELS[name]()
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/{form.replace(' ', '')}"  # each starts cold
            start = time.perf_counter()
            step = made(form, model, loss)
            step(batch)
            quantities[f"{form}: first step, s"] = time.perf_counter() - start
            steps[form] = functools.partial(step, batch)
        times: dict[str, list[float]] = {form: [] for form in forms}
        for number in range(WARM + (4 if QUICK else STEPS)):
            for form, run in steps.items():
                start = time.process_time()
                run()
                if number >= WARM:
                    times[form].append(1e3 * (time.process_time() - start))
    return quantities | {f"{form}: step, ms": statistics.median(values) for form, values in times.items()}


def head(vocabulary: int, seed: int) -> dict[str, float]:
    """Measure milliseconds and peak bytes of forward and backward of the loss head alone: 1,024 tokens, width 256."""
    from loopwise.compile import linear_cross_entropy
    from loopwise.compile.search.measure import peak_bytes, seconds

    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    x, weight = torch.randn(1024, 256, requires_grad=True), torch.randn(vocabulary, 256, requires_grad=True)
    target = torch.randint(0, vocabulary, (1024,))

    def plain(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(nn.functional.linear(x, weight), target)

    forms = {"eager": plain, "torch.compile": torch.compile(plain), "ours": linear_cross_entropy}
    device = torch.device("cpu")

    def both(form: Callable[..., torch.Tensor]) -> None:
        x.grad = weight.grad = None
        form(x, weight, target).backward()

    steps = {name: functools.partial(both, form) for name, form in forms.items()}
    quantities = {}
    for name, times in seconds(steps, device, repeats=4 if QUICK else STEPS).items():
        quantities[f"{name}: head, ms"] = 1e3 * statistics.median(times)
        x.grad = weight.grad = None
        quantities[f"{name}: head, MiB"] = peak_bytes(steps[name], device) / 2**20
    return quantities


def saved(seed: int) -> dict[str, float]:
    """Measure MiB of activations saved for backward, and milliseconds of forward and backward, for each budget."""
    from loopwise.compile import Plan, TrainStep
    from loopwise.compile.graph.backend import Log
    from loopwise.compile.search.measure import seconds
    from loopwise.compile.search.variants import variant

    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    model, loss, batch = MODELS["gpt-8k"]()
    step = TrainStep(model, loss, optimizer_of(model))
    plans = {"eager": Plan(), "ours": Plan(graph="inductor", passes=("loss_head",), budget=BUDGET)}
    computes = {name: variant(step.spec, plan, Log()) for name, plan in plans.items()}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    quantities = {}
    for name, compute in computes.items():
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        compute(batch).backward()  # compiled without the hooks
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = compute(batch)
        quantities[f"{name}: saved, MiB"] = sum(kept.values()) / 2**20
        result.backward()
    runs = {name: lambda compute=compute: compute(batch).backward() for name, compute in computes.items()}
    times = seconds(runs, torch.device("cpu"), repeats=4 if QUICK else STEPS)
    return quantities | {
        f"{name}: forward and backward, ms": 1e3 * statistics.median(t) for name, t in times.items()
    }


def equal(seed: int) -> dict[str, float]:
    """Return the largest difference of two loss curves over 500 steps on the digits, smoothed over 20 steps."""
    from sklearn.datasets import load_digits

    from loopwise.compile import Plan, TrainStep

    torch.set_num_threads(THREADS)
    images, labels = (torch.tensor(values) for values in load_digits(return_X_y=True))
    images = images.float() / 16

    def curve(form: str) -> torch.Tensor:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10))
        loss, optimizer = nn.CrossEntropyLoss(), optimizer_of(model)
        plan = Plan(graph="inductor", passes=("loss_head",), optimizer="fused")
        step: Any = (
            TrainStep(model, loss, optimizer, plan=plan) if form == "ours" else loop(model, loss, optimizer)
        )
        draws, losses = torch.Generator().manual_seed(seed), []
        for _ in range(500):
            rows = torch.randint(len(labels), (64,), generator=draws)
            rows = rows.flip(0) if form == "other order" else rows
            losses.append(step((images[rows], labels[rows])))
        return torch.stack(losses).unfold(0, 20, 1).mean(1)

    eager = curve("eager")
    return {f"{form}: apart": (curve(form) - eager).abs().max().item() for form in ("ours", "other order")}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    functions: dict[str, Callable[[int], dict[str, float]]] = {}
    for name in LANGUAGE:
        functions[f"step.{name}"] = functools.partial(timed, name)
    for vocabulary in (8192, 32768):
        functions[f"head.{vocabulary}"] = functools.partial(head, vocabulary)
    return functions | {"saved.gpt-8k": saved, "equal.digits": equal}


def rows(runs: Runs) -> list[Row]:
    table: list[Row] = []
    for case, values in runs.items():
        kind, _, name = case.partition(".")
        kinds = {"step": step_rows, "head": _head, "saved": _saved, "equal": _equal}
        table += kinds[kind](name, values)
    return table


def step_rows(name: str, values: dict[str, list[float]]) -> list[Row]:
    ours = values["ours: step, ms"]
    bars = {"torch.compile": "ratio <= 0.85", "eager": "ratio <= 0.75", "max-autotune": None}
    table = []
    for peer, bar in bars.items():
        if f"{peer}: step, ms" not in values:
            continue
        text = bar if name in LANGUAGE else None
        table.append(Row(f"{name}: step", ours, values[f"{peer}: step, ms"], peer, "ms", text))
    first = values["ours: first step, s"]
    if "fast: step, ms" in values:
        for peer, text in (("eager", "ratio <= 0.45"), (LOW, None)):
            label = f'{name}: step, precision="mixed"'
            table.append(Row(label, values["fast: step, ms"], values[f"{peer}: step, ms"], peer, "ms", text))
    return [
        *table,
        Row(f"{name}: first step", first, values["torch.compile: first step, s"], "torch.compile", "s", None),
    ]


def _head(name: str, values: dict[str, list[float]]) -> list[Row]:
    table = []
    for unit, bar in (("MiB", "ratio <= 0.35"), ("ms", "ratio <= 1.05")):
        what = f"loss head, vocabulary {int(name):,}: {'peak memory' if unit == 'MiB' else 'forward and backward'}"
        for peer in ("torch.compile", "eager"):
            text = bar if peer == "torch.compile" else None
            table.append(
                Row(what, values[f"ours: head, {unit}"], values[f"{peer}: head, {unit}"], peer, unit, text)
            )
    return table


def _saved(name: str, values: dict[str, list[float]]) -> list[Row]:
    both = (
        ("saved, MiB", "activations saved", "MiB", "ratio <= 0.25"),
        (
            "forward and backward, ms",
            "its forward and backward",
            "ms",
            "ratio <= 1.0",
        ),
    )
    return [
        Row(
            f"{name}, budget {BUDGET}: {label}",
            values[f"ours: {key}"],
            values[f"eager: {key}"],
            "eager",
            unit,
            bar,
        )
        for key, label, unit, bar in both
    ]


def _equal(name: str, values: dict[str, list[float]]) -> list[Row]:
    label = f"{name}: 500 steps, largest distance of the loss curve from eager's"
    peer = [max(value, math.ulp(1.0)) for value in values["other order: apart"]]
    return [
        Row(label, values["ours: apart"], peer, "eager, samples in another order", "nats", "ratio <= 1.0")
    ]


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
