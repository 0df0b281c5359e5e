"""Gain of compiling the training step on a GPU: tokens and images a second, largest batches, kernels and their limits."""

from __future__ import annotations

import functools
import gc
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .. import harness
from ..harness import Runs
from ..models.large import SHAPES, TINY, by_liger, check_liger, large, loss_of
from ..models.vision import classifier
from ..record import Row
from .forms import optimizer_of, updating

CLAIM = "compile_gpu"
QUICK = False
FORMS = ("eager", "torch.compile", "liger", "ours")
LARGEST = 256
STEPS = 6
ROWS, VOCABULARY = 4096, 131072
"""Of the loss head's kernel, in bfloat16: 1 GiB of logits, which no cache holds."""

Batch = tuple[torch.Tensor, torch.Tensor]


def where() -> torch.device:
    """Return the GPU, or the CPU, on which tests run small cases."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def made(form: str, model: nn.Module, loss: Any) -> Callable[[Batch], torch.Tensor]:
    """Return a training step in bfloat16 with float32 weights: the usual loop under autocast, or ours."""
    optimizer, device = optimizer_of(model), where()
    if form == "ours":
        from loopwise.compile import TrainStep

        return TrainStep(model, loss, optimizer, precision="mixed")
    if form == "torch.compile":
        loss = torch.compile(loss)

    return updating(functools.partial(loss, model), optimizer, device.type, torch.bfloat16)


def speeds(
    form: str, make: Callable[[], tuple[nn.Module, Any]], batch_of: Callable[[int], Batch]
) -> Iterator[tuple[int, float]]:
    """Return the samples a second for batch sizes that double until memory is full."""
    from loopwise.compile.search.measure import seconds

    size, largest = (2, 2) if where().type == "cpu" else (4, LARGEST)
    while size <= largest:
        torch._dynamo.reset()
        try:
            step, batch = made(form, *make()), batch_of(size)
            times = seconds({"": lambda: step(batch)}, where(), 2 if QUICK else STEPS, warm=3)[""]  # noqa: B023
        except torch.OutOfMemoryError:
            return
        finally:
            step = batch = None
            gc.collect()  # compiled code is in cycles
            torch.cuda.empty_cache()
        yield size, size / statistics.median(times)
        size *= 2


def best(rates: Iterator[tuple[int, float]], by: int, what: str) -> dict[str, float]:
    sizes = dict(rates)
    size = max(sizes, key=sizes.__getitem__)
    return {f"{what}/s": by * sizes[size], "its batch": size, "largest batch": max(sizes)}


def language(name: str, form: str, seed: int) -> dict[str, float]:
    shape, device = (TINY if where().type == "cpu" else SHAPES)[name], where()

    if form == "liger":
        check_liger(device)

    def make() -> tuple[nn.Module, Any]:
        torch.manual_seed(seed)
        model, loss = by_liger(shape) if form == "liger" else (large(shape), loss_of)
        return model.to(device), loss

    def batch_of(size: int) -> Batch:
        tokens = torch.randint(0, shape.vocabulary, (size, shape.tokens + 1), device=device)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return best(speeds(form, make, batch_of), shape.tokens, "tokens")


def images(form: str, seed: int) -> dict[str, float]:
    """Measure ResNet-50 at 224 x 224, or on a CPU ResNet-18 at 32 x 32."""
    device, small = where(), where().type == "cpu"

    def make() -> tuple[nn.Module, Any]:
        torch.manual_seed(seed)
        model = classifier("resnet18" if small else "resnet50")[0].to(device)
        return model, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])

    def batch_of(size: int) -> Batch:
        side, size = (32, size) if small else (224, 8 * size)
        return torch.randn(size, 3, side, side, device=device), torch.arange(size, device=device) % 10

    return best(speeds(form, make, batch_of), 1 if small else 8, "images")


def kernel(seed: int) -> dict[str, float]:
    """Time the loss head's pass over its logits by the kernel, by torch, by Inductor, and a copy of as many bytes."""
    from loopwise.compile.loss_head.kernels.loss_gradient import loss_gradient_
    from loopwise.compile.search.measure import seconds

    device = where()
    rows, classes = (8, 64) if device.type == "cpu" else (ROWS, VOCABULARY)
    torch.manual_seed(seed)
    logits = torch.randn(rows, classes, device=device, dtype=torch.bfloat16)
    target, one = torch.randint(0, classes, (rows,), device=device), torch.ones(rows, device=device)

    def plain(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = logits.float()
        lse = z.logsumexp(1)
        p = (z - lse[:, None]).exp()
        classes_of = torch.arange(z.shape[1], device=z.device)
        p = p - (classes_of == target[:, None]).float()
        return lse - z.gather(1, target[:, None])[:, 0], p.to(logits.dtype)

    compiled, out = torch.compile(plain), torch.empty_like(logits)
    forms = {
        "kernel": lambda: loss_gradient_(logits, target, one, one, (one, one), None, 0.0, None, True),
        "torch": lambda: plain(logits),
        "inductor": lambda: compiled(logits),
        # what must be moved is one reading and one writing of the logits
        "floor": lambda: out.copy_(logits),
    }
    times = seconds(forms, device, repeats=3 if QUICK else 15)
    return {f"{name}: ms": 1e3 * statistics.median(values) for name, values in times.items()}


def recorded(seed: int) -> dict[str, float]:
    """Time a small GPT's training step as the plan makes it, and as one CUDA graph."""
    from loopwise.compile import Plan, TrainStep
    from loopwise.compile.search.measure import seconds

    from ..models import MODELS

    device, steps = where(), {}
    for name in ("ordinary", "graph"):
        torch.manual_seed(seed)
        model, loss, batch = MODELS["gpt-8k"]()
        model, batch = model.to(device), tuple(part.to(device) for part in batch)
        plan = Plan(
            graph="inductor", passes=("loss_head",), optimizer="fused", precision="mixed", regions=True
        )
        plan = plan.changed(cuda_graph=name == "graph" and device.type == "cuda")
        step = TrainStep(model, loss, optimizer_of(model), precision="mixed", plan=plan)
        for _ in range(6):
            step(batch)
        print(step.explain())
        if device.type == "cuda" and step.plan.cuda_graph != (name == "graph"):
            raise RuntimeError(f"the step meant to be {name} is not: {step.plan}")
        steps[name] = functools.partial(step, batch)
    times = seconds(steps, device, repeats=3 if QUICK else 30)
    return {f"{name}: ms": 1e3 * statistics.median(values) for name, values in times.items()}


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    if device == "cpu":
        return {}
    functions: dict[str, Callable[[int], dict[str, float]]] = {
        "kernel.loss": kernel,
        "graph.gpt-8k": recorded,
    }
    liger = importlib.util.find_spec("liger_kernel") is not None
    for form in FORMS:
        if form != "liger":
            functions[f"images.{form}"] = functools.partial(images, form)
        for name in SHAPES:
            if form != "liger" or (liger and name.startswith("llama")):
                functions[f"{name}.{form}"] = functools.partial(language, name, form)
    return functions


def rows(runs: Runs) -> list[Row]:
    table = _kernel(runs["kernel.loss"]) + _recorded(runs["graph.gpt-8k"])
    bars = {"torch.compile": "ratio >= 1.15", "eager": "ratio >= 2", "liger": "ratio >= 1.1"}
    for name, what in [*((name, "tokens") for name in SHAPES), ("images", "images")]:
        ours = runs[f"{name}.ours"]
        label = "ResNet-50" if name == "images" else name
        for peer, bar in bars.items():
            if (theirs := runs.get(f"{name}.{peer}")) is None:
                continue
            text = bar if name != "images" or peer == "torch.compile" else None
            table.append(
                Row(
                    f"{label}: {what}/s at its best batch",
                    ours[f"{what}/s"],
                    theirs[f"{what}/s"],
                    peer,
                    "1/s",
                    text,
                )
            )
            text = "ratio >= 2" if peer == "eager" and name != "images" else None
            table.append(
                Row(f"{label}: largest batch", ours["largest batch"], theirs["largest batch"], peer, "", text)
            )
    return table


def _kernel(values: dict[str, list[float]]) -> list[Row]:
    label = f"loss head's kernel, {ROWS:,} x {VOCABULARY:,} in bfloat16"
    bars = {"floor": "ratio <= 1.25", "inductor": "ratio <= 1.0", "torch": None}
    names = {"floor": "a copy of the logits", "inductor": "Inductor's", "torch": "torch's operations"}
    return [
        Row(label, values["kernel: ms"], values[f"{peer}: ms"], names[peer], "ms", bar)
        for peer, bar in bars.items()
    ]


def _recorded(values: dict[str, list[float]]) -> list[Row]:
    label = "gpt-8k: step as one CUDA graph"
    return [Row(label, values["graph: ms"], values["ordinary: ms"], "the same plan without", "ms", None)]


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
