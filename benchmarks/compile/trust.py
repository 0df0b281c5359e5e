"""Trust in the compiled training step: seconds to the first step, errors that its checks catch, and memory forecast."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import harness
from ..harness import Runs
from ..models import MODELS
from ..models.language import gpt
from ..record import ROOT, Row
from . import planted as situations
from .planted import PASS
from .planting import HARMLESS, Planted, effect
from .speed import loop, optimizer_of

CLAIM = "compile_trust"
QUICK = False
LAYERS, VOCABULARY = 12, 8192
PLANTED = 100
"""Wrong and slow passes each, in a run."""
SIZED = ("gpt-8k", "bert", "resnet18", "vit_tiny")


# -- cold start -------------------------------------------------------------------------------------


def first_step(form: str, seed: int) -> None:
    """Print the processor seconds until the first training step of a 12-layer GPT ends, compilers included."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, loss, batch = gpt(VOCABULARY, 2 if QUICK else LAYERS)
    from loopwise.compile import TrainStep

    before = sum(os.times()[:4])
    if form == "torch.compile":
        model.compile()
        step: Any = loop(model, loss, optimizer_of(model))
    else:
        step = TrainStep(
            model, loss, optimizer_of(model), autotune="off" if form == "compiled at once" else "default"
        )
    step(batch)
    print(sum(os.times()[:4]) - before)


def cold(seed: int) -> dict[str, float]:
    """Time each form in its own process with an empty cache, and again with the cache that the first one left."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in ("torch.compile", "compiled at once", "measured"):
            own = f"{folder}/{form.replace(' ', '_')}"
            places = {"TORCHINDUCTOR_CACHE_DIR": f"{own}/inductor", "LOOPWISE_CACHE": f"{own}/loopwise"}
            alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # no pool: its processor time would not be seen
            call = f"from benchmarks.compile import trust as c; c.QUICK = {QUICK}; c.first_step({form!r}, {seed})"
            for turn in ("first", "second"):
                done = subprocess.run(
                    [sys.executable, "-c", call],
                    env=os.environ | places | alone,
                    cwd=ROOT,
                    check=True,
                    capture_output=True,
                    text=True,
                )
                seconds[f"{form}: {turn}"] = float(done.stdout.split()[-1])
    return seconds


# -- the gate ---------------------------------------------------------------------------------------


def network(draws: random.Random) -> tuple[nn.Module, Any]:
    """Return a small model of one of three kinds, and a batch."""
    width = draws.choice([16, 24, 48])
    torch.manual_seed(draws.randrange(2**31))
    kind = draws.choice(["dense", "images", "tokens"])
    if kind == "dense":
        layers = [nn.Linear(8, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width), nn.SiLU()]
        return nn.Sequential(*layers, nn.Linear(width, 5)), (torch.randn(32, 8), torch.arange(32) % 5)
    if kind == "images":
        layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5))
        return model, (torch.randn(16, 3, 12, 12), torch.arange(16) % 5)
    layers = [nn.Embedding(11, width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LayerNorm(6 * width), nn.Linear(6 * width, 5))
    return model, (torch.randint(0, 11, (24, 6)), torch.arange(24) % 5)


def _wrong(draws: random.Random) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return an error of a wrong kernel: a factor, an offset, one wrong element, or a wrong gradient."""
    by = 10 ** draws.uniform(-3, 0)
    return draws.choice(
        [
            lambda t: t * (1 + by),
            lambda t: t + by * t.detach().std(),
            lambda t: torch.where(
                torch.arange(t.numel()).view(t.shape) == t.numel() // 2, t * (1 + 10 * by), t
            ),
            lambda t: t + by * (t - t.detach()),
            lambda t: t.roll(1, 0),
        ]
    )


def _slow(draws: random.Random) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the right value after useless work, as a slow kernel does."""
    side = draws.choice([192, 256, 384])
    return lambda t: (
        t + 0 * torch.ones(side, side).mm(torch.ones(side, side)).mm(torch.ones(side, side)).sum()
    )


def planted(seed: int) -> dict[str, float]:
    """Count the wrong passes, and the right passes, that the training step goes back to eager for."""
    from loopwise.compile import Plan, TrainStep
    from loopwise.compile.graph import passes
    from loopwise.compile.search.candidates import time_candidates, try_plan
    from loopwise.compile.search.search import fastest
    from loopwise.compile.verify.numerics import Comparison

    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 10_000
    draws = random.Random(seed)
    counts = {"wrong": 0.0, "named": 0.0, "slow": 0.0, "right": 0.0}
    plan, count = Plan(graph="captured", passes=(PASS,)), 10 if QUICK else PLANTED
    own = passes.PASSES[PASS]
    for kind in ("wrong", "slow", "right"):
        for _ in range(count):
            make = {"wrong": _wrong, "slow": _slow, "right": lambda _: lambda t: t * 1.0}[kind]
            while True:
                model, batch = network(draws)
                passes.PASSES[PASS] = form = Planted(make(draws), draws.random())
                if kind != "wrong" or effect(model, batch, plan, form) > HARMLESS:
                    break
            step = TrainStep(model, nn.CrossEntropyLoss(), optimizer_of(model), plan=plan)
            if kind == "slow":
                comparison = Comparison(step.spec, batch)
                candidates = [try_plan(step.spec, p, comparison) for p in (Plan(), plan)]
                assert not any(candidate.refused for candidate in candidates), candidates
                time_candidates(candidates, comparison.sandbox)
                counts[kind] += fastest(candidates) is candidates[0]
                continue
            step.prepare(batch)
            assert step.plan is not None
            back = step.plan.graph == "eager"
            counts[kind] += back if kind == "wrong" else not back
            counts["named"] += "attention: wrong: " in str(step.explain()) and kind == "wrong"
    passes.PASSES[PASS] = own
    return {f"{kind}, share": value / count for kind, value in counts.items()}


def in_situations(seed: int) -> dict[str, float]:
    return situations.planted(seed, 10 if QUICK else PLANTED)


# -- memory -----------------------------------------------------------------------------------------


def peak(name: str, seed: int) -> dict[str, float]:
    """Return the peak memory that ``fit`` predicts for twice the batch, as a multiple of the measured peak."""
    from loopwise.compile import Plan, TrainStep, fit

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, loss, batch = MODELS[name]()
    plan = Plan(graph="captured", passes=("loss_head",))
    result = fit(TrainStep(model, loss, optimizer_of(model), plan=plan), batch, largest=16 if QUICK else 64)
    pairs = [(size.predicted, size.peak) for size in result.sizes if size.predicted is not None]
    return {
        "furthest from 1": max(
            (foretold / measured for foretold, measured in pairs), key=lambda r: abs(r - 1)
        )
    }


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    sized = {f"peak.{name}": functools.partial(peak, name) for name in SIZED}
    planting = {"planted.passes": planted, "situations.passes": in_situations}
    return {f"cold.gpt-{LAYERS}": cold, **planting, **sized}


def rows(runs: Runs) -> list[Row]:
    table: list[Row] = []
    for case, values in runs.items():
        kind, _, name = case.partition(".")
        kinds = {"cold": _cold, "planted": _planted, "situations": _in_situations, "peak": _peak}
        table += kinds[kind](name, values)
    return table


def _cold(name: str, values: dict[str, list[float]]) -> list[Row]:
    peer = values["torch.compile: first"]
    table = []
    for turn, bar in (("first", "ratio <= 0.4"), ("second", "ratio <= 0.15")):
        process = {"first": "first step", "second": "first step of a second process"}[turn]
        for form, text in (("compiled at once", bar), ("measured", None)):
            what = {"compiled at once": 'autotune="off"', "measured": 'autotune="default"'}[form]
            label = f"{name} layers: {process}, {what}"
            table.append(Row(label, values[f"{form}: {turn}"], peer, "torch.compile, empty cache", "s", text))
    again = values["torch.compile: second"]
    label = f'{name} layers: first step of a second process, autotune="default"'
    return [*table, Row(label, values["measured: second"], again, "torch.compile, second process", "s", None)]


def _planted(name: str, values: dict[str, list[float]]) -> list[Row]:
    labels = {
        "wrong": "wrong passes that are stepped back from",
        "named": "wrong passes that are named with the tensor",
        "slow": "slow passes that are not chosen",
        "right": "right passes that are kept",
    }
    bars = dict.fromkeys(("wrong", "named", "slow"), "ours >= 1.0")
    return [
        Row(f"{label}, {PLANTED} a run", values[f"{kind}, share"], None, "", "share", bars.get(kind))
        for kind, label in labels.items()
    ]


def _in_situations(name: str, values: dict[str, list[float]]) -> list[Row]:
    labels = {
        "wrong": (
            "wrong passes that update no weight, in random, zero-initialised, recalled, recompiled steps",
            1.0,
        ),
        "right": ("right passes that are kept in the same situations", 0.98),
    }
    return [
        Row(f"{label}, {PLANTED} a run", values[f"{kind}, share"], None, "", "share", f"ours >= {bar}")
        for kind, (label, bar) in labels.items()
    ]


def _peak(name: str, values: dict[str, list[float]]) -> list[Row]:
    ratios = values["furthest from 1"]
    off = [abs(ratio - 1) for ratio in ratios]
    return [Row(f"{name}: foretold peak memory, off by at most", off, None, "", "share", "ours <= 0.1")]


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
