"""What is on in a compiled training step: one frozen value, printable and pinnable as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loopwise import __version__
from loopwise.errors import InputError

from .graph.passes import PASSES

GRAPHS = ("eager", "captured", "inductor")
LAYOUTS = ("as_is", "channels_last")
OPTIMIZERS = ("as_is", "foreach", "fused")
PRECISIONS = ("exact", "mixed")


@dataclass(frozen=True)
class Plan:
    """What is on.  ``Plan()`` is the ordinary eager step.

    Args:
        graph: ``eager``: the model as it is; ``captured``: its graph with our passes, run by
            PyTorch's eager kernels (no compile time); ``inductor``: the same compiled.
        passes: rewrites of the captured graph, by name: ``loss_head`` (linear + cross-entropy without
            materialised logits), ``loss_kernel`` (its pass over the logits by a Triton kernel), ``attention`` (written out -> ``scaled_dot_product_attention``),
            ``short_attention`` (in bfloat16 on a CPU -> in float32, where that is faster).
        layout: memory format of convolution weights and images.
        optimizer: which implementation of the optimizer's update; the same arithmetic.
        budget: share of the activations that the compiled graph may save for backward, in [0, 1];
            below 1 the others are computed again.
        precision: ``exact``: nothing beyond the order of floating-point additions; ``mixed``: autocast to
            the dtype that the device multiplies fastest, which changes the numbers.
        max_autotune: kernels chosen by timing (``max_autotune_gemm``).
        regions: repeated blocks of the model are found in its graph and compiled once.
        cuda_graph: the whole step, update included, is recorded as one CUDA graph and replayed.
    """

    graph: str = "eager"
    passes: tuple[str, ...] = ()
    layout: str = "as_is"
    optimizer: str = "as_is"
    budget: float = 1.0
    precision: str = "exact"
    max_autotune: bool = False
    regions: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        choices = {"graph": GRAPHS, "layout": LAYOUTS, "optimizer": OPTIMIZERS, "precision": PRECISIONS}
        for name, valid in choices.items():
            one_of(name, getattr(self, name), valid)
        object.__setattr__(self, "passes", tuple(self.passes))  # JSON has lists
        for name in self.passes:
            one_of("passes", name, tuple(PASSES))
        if isinstance(self.budget, bool) or not 0 <= self.budget <= 1:
            raise InputError(
                f"budget={self.budget!r}",
                "the share of activations to save, a number in [0, 1]",
                "a percentage or bytes instead of a fraction",
                "pass for instance budget=0.5, or memory='6GiB' to the step",
            )

    def changed(self, **changes: Any) -> Plan:
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        found, known = json.loads(text), {field.name for field in dataclasses.fields(cls)}
        if unknown := set(found) - known:
            raise InputError(
                f"a plan with {', '.join(sorted(unknown))}",
                f"the fields {', '.join(sorted(known))}",
                "a plan of another version, or edited by hand",
                "let the step find one, and print step.plan.to_json()",
            )
        return cls(**found)

    def __str__(self) -> str:
        """What differs from the eager step, in few words."""
        default = Plan()
        parts = [self.graph]
        parts += [name.replace("_", " ") for name in self.passes]
        parts += [self.layout] * (self.layout != default.layout)
        parts += [f"budget {self.budget:g}"] * (self.budget < 1) + ["autotuned"] * self.max_autotune
        parts += ["regions"] * self.regions
        parts += [f"{self.optimizer} optimizer"] * (self.optimizer != default.optimizer)
        parts += ["CUDA graph"] * self.cuda_graph
        return " + ".join(parts)


def one_of(name: str, value: object, valid: tuple[str, ...]) -> None:
    """``value`` must be one of ``valid``."""
    if value not in valid:
        raise InputError(
            f"{name}={value!r}",
            f"one of {', '.join(map(repr, valid))}",
            "another word for it, or an option of another version",
            f"pass for instance {name}={valid[0]!r}",
        )


def situation(model: torch.nn.Module, optimizer: Any, shapes: Any, asked: Any) -> str:
    """A digest of everything that a measured plan depends on, for its file in the cache."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    parts = [name, torch.__version__, __version__, torch.get_num_threads(), type(optimizer).__name__]
    parts += [f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for name, p in model.named_parameters()]
    parts += [type(module).__qualname__ for module in model.modules()]
    return hashlib.sha256(repr([*parts, shapes, asked]).encode()).hexdigest()[:24]


def _processor() -> str:
    return f"{torch.backends.cpu.get_cpu_capability()} {os.cpu_count()}"


def folder() -> Path:
    """Where measured plans are kept: ``LOOPWISE_CACHE``, else ``~/.cache/loopwise``."""
    given = os.environ.get("LOOPWISE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "loopwise"


def recall(digest: str) -> tuple[Plan, dict[str, float]] | None:
    """The plan that was measured in this situation before and the eager step's errors, if they can be read."""
    try:
        kept = json.loads((folder() / "plans" / f"{digest}.json").read_text())
        noise = {str(name): float(error) for name, error in kept["errors"].items()}
        return Plan.from_json(json.dumps(kept["plan"])), noise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(digest: str, plan: Plan, noise: dict[str, float]) -> None:
    """Keep a measured plan and the eager step's errors; a folder that cannot be written is no reason to stop."""
    path = folder() / "plans" / f"{digest}.json"
    finite = {name: error for name, error in noise.items() if math.isfinite(error)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")
        own.write_text(json.dumps({"plan": dataclasses.asdict(plan), "errors": finite}))
        os.replace(own, path)
    except OSError:
        return
