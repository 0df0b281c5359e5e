"""Plan of a compiled training step: one frozen value, printable, storable as JSON, and kept for later runs.

Format: ``Plan.to_json()`` is a JSON object with one key for each argument of ``loopwise.compile.Plan``.  Plans that
were measured are kept in the folder ``plans`` of ``~/.cache/loopwise``, or of the folder that the environment
variable ``LOOPWISE_CACHE`` names.  The file ``<key>.json`` holds a JSON object: ``plan``, such an object;
``measured_at``, the time of the measurement in ISO format; ``refused``, a list of objects with a ``plan`` in words and
the ``reason`` why it was refused; and ``checksum``, the SHA-256 of the key and of the other three as JSON.  The key is a
digest of device, versions, names of the passes, model, optimizer, shapes and arguments of the search.  A file that is
damaged or belongs to another key counts as absent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from loopwise import __version__, validate
from loopwise.errors import InputError
from loopwise.storage.files import replace_file
from loopwise.storage.json_lines import DAMAGED, texts

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
FORMAT = 3
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
        for switch in ("max_autotune", "regions", "cuda_graph"):
            validate.one_of(switch, getattr(self, switch), (False, True))
        if not isinstance(self.passes, (tuple, list)):
            raise InputError(
                f"passes={self.passes!r}",
                f"a tuple of names out of {', '.join(PASSES)}",
                "one name without a tuple around it",
                f"pass passes=({self.passes!r},)"
                if isinstance(self.passes, str)
                else "pass passes=() for none",
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
            InputError: ``text`` is no JSON object, or has an unknown field, or a value that does not exist.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise TypeError("it is no object")
        except (ValueError, TypeError, RecursionError) as error:
            raise _no_plan(
                f"{str(text)[:40]!r} for a plan", "a JSON object", f"another text, or a cut one: {error}"
            ) from error
        if unknown := set(values) - fields:
            names, cause = ", ".join(sorted(unknown)), "a plan of another version, or one edited by hand"
            raise _no_plan(f"a plan with {names}", f"the fields {', '.join(sorted(fields))}", cause)
        try:
            return cls(**values)
        except RecursionError as error:
            raise _no_plan(
                "a plan with a deeply nested value", "names and numbers", "another text"
            ) from error

    def __str__(self) -> str:
        """Return the differences from the eager step, in few words."""
        parts = [self.graph, *(name.replace("_", " ") for name in self.passes)]
        parts += [self.layout] * (self.layout != "as_is")
        parts += [f"budget {self.budget:g}"] * (self.budget < 1) + ["max autotune"] * self.max_autotune
        parts += ["regions"] * self.regions
        parts += [f"{self.optimizer} optimizer"] * (self.optimizer != "as_is")
        parts += ["CUDA graph"] * self.cuda_graph
        return " + ".join(parts)


def _no_plan(seen: str, expected: str, cause: str) -> InputError:
    """Make the error for a text that ``to_json`` did not write."""
    return InputError(seen, expected, cause, "let the step choose a plan, and print step.plan.to_json()")


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


@dataclass(frozen=True)
class StoredPlan:
    """Plan that an earlier run measured."""

    plan: Plan
    path: str
    """File that holds it."""
    measured_at: str
    """Time of the measurement, in ISO format."""
    refused: list[dict[str, str]]
    """Other plans, each with the ``reason`` why it was refused."""


def recall(key: str) -> StoredPlan | None:
    """Return the plan that an earlier run measured; ``None`` if there is none, or if its file is damaged."""
    path = _path(key)
    try:
        stored = json.loads(path.read_text())
        if stored.pop("checksum") != _checksum(key, stored):
            return None
        plan = Plan.from_json(json.dumps(stored["plan"]))
        (measured_at,) = texts([stored["measured_at"]])
        refused = [
            dict(zip(("plan", "reason"), texts([one["plan"], one["reason"]]), strict=True))
            for one in stored["refused"]
        ]
        return StoredPlan(plan, str(path), measured_at, refused)
    except (OSError, *DAMAGED):
        return None


def remember(key: str, plan: Plan, refused: list[dict[str, str]], measured_at: str = "") -> None:
    """Store a measured plan for later runs; do nothing if the folder cannot be written.

    Args:
        key: the result of ``cache_key``.
        plan: the plan.
        refused: a ``plan``, in words, and the ``reason`` of each other plan that was refused.
        measured_at: time of the measurement, in ISO format, if it was not now.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    stored = {"plan": dataclasses.asdict(plan), "measured_at": measured_at or now, "refused": refused}
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(stored | {"checksum": _checksum(key, stored)}).encode())
    except OSError:
        return


def _checksum(key: str, stored: dict[str, Any]) -> str:
    """Return the checksum of what is stored under a key."""
    return hashlib.sha256(f"{key} {json.dumps(stored, sort_keys=True)}".encode()).hexdigest()
