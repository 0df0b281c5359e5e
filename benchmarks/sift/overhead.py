"""Cost of sifting: a scored sample compared with a training forward, and the wrapper apart from scoring."""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import harness
from ..peers import installed
from ..record import Row

CLAIM = "sift_overhead"
QUICK = False
BATCH = {"digits": 64, "resnet18": 32}
POOL = 4


def digits_network() -> nn.Module:
    """Return the network of examples/digits.py, repeated as peers' environments lack the example's packages."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 32), *block(32, 32), nn.MaxPool2d(2), *block(32, 64), *block(64, 64), nn.MaxPool2d(2)]
    layers += [*block(64, 128), *block(128, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


def matmul(device: str, seed: int) -> dict[str, float]:
    """Measure the machine's fp32 arithmetic by a 1024 x 1024 x 1024 product."""
    a, b = torch.randn(2, 1024, 1024, device=device, generator=torch.Generator(device).manual_seed(seed))
    return {"ms/GFLOP": 1e3 * seconds(lambda: a @ b, device) / (2 * 1.024**3)}


def gflop(name: str) -> float:
    """Return the multiplications and additions of one sample's forward pass, in 10^9."""
    model, x, _ = model_of(name, "cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x[:1])
    return counter.get_total_flops() / 1e9


def model_of(name: str, device: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a network, and the inputs and targets of one pool, on ``device``."""
    size = BATCH[name] * POOL
    if name == "digits":
        model = digits_network().to(device)
        return model, torch.rand(size, 1, 32, 32, device=device), torch.arange(size, device=device) % 10
    from torchvision.models import resnet18

    model = resnet18().to(device)
    return model, torch.randn(size, 3, 64, 64, device=device), torch.arange(size, device=device) % 1000


def seconds(function: Callable[[], Any], device: str) -> float:
    """Return the median seconds of a call, after two warm-up calls."""
    times = []
    for _ in range(5 if QUICK else 12):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def forward(name: str, device: str, seed: int) -> dict[str, float]:
    """Time the plain fp32 training forward of one batch, with its graph, and the whole plain step."""
    torch.manual_seed(seed)
    model, x, y = model_of(name, device)
    size = BATCH[name]
    x, y, criterion = x[:size], y[:size], nn.CrossEntropyLoss()

    def step() -> None:
        criterion(model(x), y).backward()
        model.zero_grad()

    ahead = seconds(lambda: criterion(model(x), y), device) / size
    return {"forward ms/sample": 1e3 * ahead, "step ms/sample": 1e3 * seconds(step, device) / size}


def scoring(name: str, device: str, compiled: bool, seed: int) -> dict[str, float]:
    """Time the scoring of a pool by the loader's own scorer, everything included."""
    from loopwise.sift.scoring import Scorer

    torch.manual_seed(seed)
    model, x, y = model_of(name, device)
    model.train()
    scorer = Scorer(model, nn.CrossEntropyLoss(reduction="none"), "auto", compiled)
    return {"scoring ms/sample": 1e3 * seconds(lambda: scorer((x, y), len(y)), device) / len(y)}


def composer(name: str, device: str, seed: int) -> dict[str, float]:
    """Time Composer's SelectiveBackprop, which selects half of one batch and has no pool."""
    from composer.algorithms.selective_backprop.selective_backprop import select_using_loss

    torch.manual_seed(seed)
    model, x, y = model_of(name, device)
    size = BATCH[name]
    x, y = x[:size], y[:size]

    def choose() -> None:
        select_using_loss(
            x,
            y,
            model,
            lambda out, target, reduction: nn.functional.cross_entropy(out, target, reduction=reduction),
            keep=0.5,
            scale_factor=1,
        )

    return {"scoring ms/sample": 1e3 * seconds(choose, device) / size}


def wrapper(device: str, seed: int) -> dict[str, float]:
    """Time an epoch of batches of 256 small tensors, plain and through the loader with a loss that costs nothing."""
    from loopwise.sift import SiftingDataLoader

    torch.manual_seed(seed)
    data = [(torch.randn(256, 16), torch.arange(256) % 10, torch.rand(256)) for _ in range(40)]
    loader = SiftingDataLoader(data, nn.Linear(16, 10), loss=lambda model, batch: batch[2], keep=0.5)
    plain = seconds(lambda: [None for _ in data], "cpu")
    return {"wrapper us/sample": 1e6 * (seconds(lambda: [None for _ in loader], "cpu") - plain) / (40 * 256)}


def wrapper_in_step(name: str, device: str, seed: int) -> dict[str, float]:
    """Time the wrapper apart from scoring, in ms for a batch of the wrapped loader."""
    from loopwise.sift import SiftingDataLoader

    torch.manual_seed(seed)
    model, x, y = model_of(name, device)
    size = BATCH[name]
    free = torch.rand(size * POOL, device=device)
    data = [(part, labels) for part, labels in zip(x.split(size), y.split(size), strict=True)] * 4
    loader = SiftingDataLoader(
        data, model, loss=lambda model, batch: free[: len(batch[1])], keep=0.5, pool=POOL
    )
    return {"wrapper ms/sample": 1e3 * seconds(lambda: [None for _ in loader], device) / (size * len(data))}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the case with a seed."""
    kind = "cpu" if device == "cpu" else "cuda"
    functions: dict[str, Callable[[int], dict[str, float]]] = {}
    for name in BATCH:
        functions[f"forward-{name}"] = functools.partial(forward, name, kind)
        functions[f"scoring-{name}"] = functools.partial(scoring, name, kind, False)
        functions[f"compiled-{name}"] = functools.partial(scoring, name, kind, True)
        functions[f"wrapper-{name}"] = functools.partial(wrapper_in_step, name, kind)
        if kind == "cpu" and installed("composer"):
            functions[f"select-{name}@composer"] = functools.partial(composer, name, kind)
    functions["matmul"] = functools.partial(matmul, kind)
    return functions | {"wrapper": functools.partial(wrapper, kind)}


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    table = []
    for name in BATCH:
        ahead, step = (runs[f"forward-{name}"][f"{what} ms/sample"] for what in ("forward", "step"))
        scored = runs[f"scoring-{name}"]["scoring ms/sample"]
        compiled = runs[f"compiled-{name}"]["scoring ms/sample"]
        around = runs[f"wrapper-{name}"]["wrapper ms/sample"]
        fp32 = "fp32 training forward"
        floor = [gflop(name) * value for value in runs["matmul"]["ms/GFLOP"]]
        table += [
            Row(f"{name}: scoring a sample", scored, ahead, fp32, "ms", "ratio <= 0.5"),
            Row(f"{name}: scoring a sample, compile=True", compiled, ahead, fp32, "ms", "ratio <= 0.5"),
            Row(f"{name}: scoring's arithmetic at matmul speed", floor, ahead, fp32, "ms", None),
            Row(f"{name}: wrapper apart from scoring", around, step, "plain step", "ms", "ratio <= 0.03"),
        ]
        if peer := runs.get(f"select-{name}@composer"):
            table.append(
                Row(f"{name}: scoring a sample", scored, peer["scoring ms/sample"], "Composer", "ms", None)
            )
    small = runs["wrapper"]["wrapper us/sample"]
    return [*table, Row("256 small tensors: wrapper a sample", small, None, "", "us", "ours <= 50")]


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
