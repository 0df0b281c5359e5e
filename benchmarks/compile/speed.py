"""Gain of compiling the training step: milliseconds and bytes, compared with eager and torch.compile."""

from __future__ import annotations

import functools
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import harness
from ..harness import Runs
from ..models import MODELS
from ..record import Row
from . import interleaved
from .forms import FORMS, LOW, OFF, loop, optimizer_of

CLAIM = "compile"
QUICK = False
LANGUAGE = ("gpt-8k", "gpt-32k")
BUDGET = 0.2
"""Share of the compiled graph's activations that the group ``saved`` keeps."""
COSTS = {"ours": ("first step", "ratio <= 1.5"), OFF: ('first step, autotune="off"', "ratio <= 0.4")}
"""Form -> name and bar of its first step, which includes the search for a plan."""


def forms_of(name: str) -> tuple[str, ...]:
    """Return the forms of a model's step to time; bfloat16 only if the processor multiplies it."""
    if name not in LANGUAGE:
        return ("eager", OFF, *FORMS[1:])
    from loopwise.devices import native_dtype

    low = native_dtype(torch.device("cpu")) == torch.bfloat16
    return ("eager", OFF, *FORMS[1:], "max-autotune", *(("fast", LOW) if low else ()))


def turns() -> int:
    return 4 if QUICK else interleaved.TURNS


def timed(name: str, seed: int) -> dict[str, float]:
    """Measure a step in each form, in turns, and the first step, in processor time."""
    measured = interleaved.measure(functools.partial(single, name), seed, forms_of(name), turns())
    return measured.quantities()


def single(name: str) -> tuple[Any, Any, list[Any]]:
    """Return one of the ``MODELS`` with its loss and a list of its only batch."""
    model, loss, batch = MODELS[name]()
    return model, loss, [batch]


def head(vocabulary: int, seed: int) -> dict[str, float]:
    """Measure milliseconds and peak bytes of forward and backward of the loss head alone: 1,024 tokens, width 256."""
    from loopwise.compile import linear_cross_entropy
    from loopwise.compile.search.measure import peak_bytes

    torch.set_num_threads(interleaved.THREADS)
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
    for name, times in interleaved.in_turns(steps, turns()).items():
        quantities[f"{name}: head, ms"] = 1e3 * statistics.median(times)
        x.grad = weight.grad = None
        quantities[f"{name}: head, MiB"] = peak_bytes(steps[name], device) / 2**20
    return quantities


def saved(seed: int) -> dict[str, float]:
    """Measure MiB of activations saved for backward, and milliseconds of forward and backward, for each budget."""
    from loopwise.compile import Plan, TrainStep
    from loopwise.compile.graph.backend import Log
    from loopwise.compile.search.variants import variant

    torch.set_num_threads(interleaved.THREADS)
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
    times = interleaved.in_turns(runs, turns())
    return quantities | {
        f"{name}: forward and backward, ms": 1e3 * statistics.median(t) for name, t in times.items()
    }


def equal(seed: int) -> dict[str, float]:
    """Return the largest difference of two loss curves over 500 steps on the digits, smoothed over 20 steps."""
    from sklearn.datasets import load_digits

    from loopwise.compile import Plan, TrainStep

    torch.set_num_threads(interleaved.THREADS)
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
    if "fast: step, ms" in values:
        for peer, text in (("eager", "ratio <= 0.45"), (LOW, None)):
            label = f'{name}: step, precision="mixed"'
            table.append(Row(label, values["fast: step, ms"], values[f"{peer}: step, ms"], peer, "ms", text))
    for form, (label, bar) in COSTS.items():
        first, peer = values[f"{form}: first step, s"], "torch.compile"
        text = bar if name in LANGUAGE else None
        table.append(Row(f"{name}: {label}", first, values[f"{peer}: first step, s"], peer, "s", text))
    return table


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
