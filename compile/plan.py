"""Plan of a compiled training step: one frozen value, printable, storable as JSON, and kept for later runs.

Format: ``Plan.to_json()`` is a JSON object with one key for each argument of ``loopwise.compile.Plan``.  Plans that
were measured are kept in the folder ``plans`` of ``~/.cache/loopwise``, or of the folder that the environment
variable ``LOOPWISE_CACHE`` names.  The file ``<key>.json`` holds a JSON object: ``plan``, such an object, and
``errors``, the relative errors of the eager step by the name of a tensor.  The key is a digest of device, versions,
names of the passes, model, optimizer, shapes and arguments of the search; files of other keys are ignored.
"""

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

from loopwise import __version__, validate
from loopwise.errors import InputError

GRAPHS = ("eager", "captured", "inductor")
PASSES = {
    "loss_head": "linear layer and cross-entropy, computed in chunks without the logits in memory",
    "loss_kernel": "the loss head's pass over the logits by one Triton kernel",
    "attention": "written-out attention as scaled_dot_product_attention",
    "short_attention": "attention in bfloat16 on a CPU, computed in float32 if that is faster",
}
"""Rewrites of the captured graph, in the order in which they run; ``graph/passes`` has a file for each."""
LAYOUTS = ("as_is", "channels_last")
OPTIMIZERS = ("as_is", "foreach", "fused")
PRECISIONS = ("exact", "mixed")
FORMAT = 2
"""Version of the files that keep measured plans; files of another version are ignored."""


@dataclass(frozen=True)
class Plan:
    """Choices that make up a compiled training step.  ``Plan()`` is the ordinary eager step.

    Args:
        graph: ``eager``: the model as it is; ``captured``: its graph with our passes, run by
            PyTorch's eager kernels (no compile time); ``inductor``: the same compiled.
        passes: rewrites of the captured graph, by the names in ``PASSES``.
        layout: memory format of convolution weights and images.
        optimizer: implementation of the optimizer's update; the arithmetic is the same.
        budget: share of the activations that the compiled graph may save for the backward pass, in
            [0, 1]; the others are computed again.
        precision: ``exact``: nothing changes beyond the order of floating-point additions; ``mixed``:
            autocast to the dtype that the device multiplies fastest, which changes the numbers.
        max_autotune: Inductor chooses its matrix kernels by timing (``max_autotune_gemm``).
        regions: blocks that repeat in the graph are compiled once.
        cuda_graph: the whole step, update included, is recorded as one CUDA graph and replayed.

    Raises:
        InputError: a value that does not exist.
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
        validate.one_of("graph", self.graph, GRAPHS)
        validate.one_of("layout", self.layout, LAYOUTS)
        validate.one_of("optimizer", self.optimizer, OPTIMIZERS)
        validate.one_of("precision", self.precision, PRECISIONS)
        validate.fraction("budget", self.budget, "the share of activations to save", 0.5, zero=True, one=True)
        if isinstance(self.passes, str):
            raise InputError(
                f"passes={self.passes!r}",
                f"a tuple of names out of {', '.join(PASSES)}",
                "one name without a tuple around it",
                f"pass passes=({self.passes!r},)",
            )
        object.__setattr__(self, "passes", tuple(self.passes))  # JSON has lists
        for name in self.passes:
            validate.one_of("passes", name, PASSES, fix=f"pass for instance passes=({next(iter(PASSES))!r},)")

    def changed(self, **changes: Any) -> Plan:
        """Return a plan with some fields changed; raise an ``InputError`` if a value does not exist."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Return the plan as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that ``to_json`` wrote.

        Raises:
            InputError: an unknown field, or a value that does not exist.
            json.JSONDecodeError: ``text`` is no JSON.
        """
        values, fields = json.loads(text), {field.name for field in dataclasses.fields(cls)}
        if unknown := set(values) - fields:
            raise InputError(
                f"a plan with {', '.join(sorted(unknown))}",
                f"the fields {', '.join(sorted(fields))}",
                "a plan of another version, or one edited by hand",
                "let the step choose a plan, and print step.plan.to_json()",
            )
        return cls(**values)

    def __str__(self) -> str:
        """Return the differences from the eager step, in few words."""
        parts = [self.graph, *(name.replace("_", " ") for name in self.passes)]
        parts += [self.layout] * (self.layout != "as_is")
        parts += [f"budget {self.budget:g}"] * (self.budget < 1) + ["max autotune"] * self.max_autotune
        parts += ["regions"] * self.regions
        parts += [f"{self.optimizer} optimizer"] * (self.optimizer != "as_is")
        parts += ["CUDA graph"] * self.cuda_graph
        return " + ".join(parts)


def cache_key(model: torch.nn.Module, optimizer: Any, shapes: Any, requested: Any) -> str:
    """Return a digest of everything that a measured plan depends on; ``requested`` are the arguments of the search."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    cpu = f"{torch.backends.cpu.get_cpu_capability()} {os.cpu_count()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    parts = [FORMAT, *PASSES, name, torch.__version__, __version__, torch.get_num_threads()]
    parts += [type(optimizer).__name__]
    parts += [f"{name} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for name, p in model.named_parameters()]
    parts += [type(module).__qualname__ for module in model.modules()]
    return hashlib.sha256(repr([*parts, shapes, requested]).encode()).hexdigest()[:24]


def _path(key: str) -> Path:
    """Return the file of a measured plan, under ``LOOPWISE_CACHE``, else under ``~/.cache/loopwise``."""
    folder = os.environ.get("LOOPWISE_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "loopwise") / "plans" / f"{key}.json"


def recall(key: str) -> tuple[Plan, dict[str, float]] | None:
    """Return the plan that an earlier run measured and the eager step's relative errors; ``None`` if there is none."""
    try:
        stored = json.loads(_path(key).read_text())
        errors = {str(name): float(error) for name, error in stored["errors"].items()}
        return Plan.from_json(json.dumps(stored["plan"])), errors
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(key: str, plan: Plan, errors: dict[str, float]) -> None:
    """Store a measured plan and the eager step's relative errors; do nothing if the folder cannot be written."""
    path = _path(key)
    finite = {name: error for name, error in errors.items() if math.isfinite(error)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")
        own.write_text(json.dumps({"plan": dataclasses.asdict(plan), "errors": finite}))
        os.replace(own, path)
    except OSError:
        return
