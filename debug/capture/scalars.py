"""Losses and metrics of steps of which nothing else is saved.

A step costs the training thread some microseconds: numbers wait for up to a second, and are handed to the writer together.
Numbers on an accelerator are copied to the host without waiting for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from loopwise.wrappers import is_shard

from ..signals.learning_rate import largest
from ..store.group import ALIGNMENT, Group, Names
from ..torch_internals import norms
from .collection import Collection
from .writer import ScalarStep, Writer

SECONDS, STEPS = 1.0, 256
"""Longest time, and largest number of steps, that numbers wait."""
NORM_SHARE, NORM_FREE = 0.002, 0.1
"""Largest share of the training time that the norms of the gradients may take, and seconds that do not count."""


class ScalarSteps:
    """Steps of scalars that wait for the writer.

    Args:
        writer: writer of the run; ``None``: this rank writes nothing.
        failed: function that is called with a collection and the error that occurred in it.
    """

    def __init__(self, writer: Writer | None, failed: Callable[[Collection, Exception], None]) -> None:
        self._writer, self._failed = writer, failed
        self._steps: list[tuple[dict[str, Any], tuple[Group, ...], list[Any]]] = []
        self._since = 0.0
        self._owned: dict[tuple[Collection, Names], Names] = {}
        self._groups: dict[tuple[tuple[str, Names], ...], tuple[Group, ...]] = {}

    def add(
        self,
        record: dict[str, Any],
        collections: Sequence[Collection],
        scalars: Mapping[str, float | torch.Tensor],
    ) -> None:
        """Add a step.

        Args:
            record: the step's record in the index.
            collections: the collections ``losses`` and ``metrics``, or one of them.
            scalars: numbers and tensors by name.
        """
        if self._writer is None or not scalars:
            return
        owned: list[tuple[str, Names]] = []
        values: list[Any] = []
        names = tuple(scalars)
        for collection in collections:
            try:
                wanted = self._wanted(collection, names)
                values += [_number(scalars[name]) for name in wanted]
            except Exception as error:
                self._failed(collection, error)
                continue
            if wanted:
                owned.append((collection.name, wanted))
        if owned:
            record["time"] = time.time()
            self._since = self._since if self._steps else time.monotonic()
            self._steps.append((record, self._groups_of(tuple(owned)), values))
        if len(self._steps) >= STEPS or time.monotonic() - self._since >= SECONDS:
            self.hand_over()

    def hand_over(self) -> None:
        """Hand the steps to the writer."""
        steps, self._steps = self._steps, []
        if self._writer is None or not steps:
            return
        tensors = [value for _, _, values in steps for value in values if isinstance(value, torch.Tensor)]
        host = _on_host(tensors)
        self._writer.submit_scalars([ScalarStep(*step) for step in steps], host)

    def _wanted(self, collection: Collection, names: Names) -> Names:
        key = (collection, names)
        if key not in self._owned:
            self._owned[key] = tuple(name for name in names if collection.wants("scalar", name))
        return self._owned[key]

    def _groups_of(self, owned: tuple[tuple[str, Names], ...]) -> tuple[Group, ...]:
        """Return the groups of a block of scalars, the same object for the same names."""
        if owned not in self._groups:
            groups, offset = [], 0
            for collection, names in owned:
                groups.append(Group(collection, names, (), (offset,), ("value",)))
                offset += -(-8 * len(names) // ALIGNMENT) * ALIGNMENT
            self._groups[owned] = tuple(groups)
        return self._groups[owned]


def _number(value: float | torch.Tensor) -> Any:
    """Return a number, or a copy of it if it is on an accelerator; of several elements, their mean."""
    if not isinstance(value, torch.Tensor):
        return float(value)
    if value.numel() == 1 and value.device.type == "cpu":
        return float(value.item())
    number = value.detach()
    if number.numel() != 1:
        number = number.double().mean()
    return number.item() if number.device.type == "cpu" else number.reshape(()).to(torch.float64, copy=True)


def _on_host(tensors: Sequence[torch.Tensor]) -> Callable[[], list[float]]:
    """Start to copy numbers to the host, and return a function that waits for them and returns them in order."""
    by_device: dict[torch.device, list[int]] = {}
    for place, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(place)
    copies: list[tuple[list[int], torch.Tensor, Any]] = []
    for device, places in by_device.items():
        stacked = torch.stack([tensors[place] for place in places])
        if device.type != "cuda":
            copies.append((places, stacked.cpu(), None))
            continue
        host = torch.empty(len(places), dtype=torch.float64, pin_memory=True)
        host.copy_(stacked, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        copies.append((places, host, event))

    def wait() -> list[float]:
        numbers = [0.0] * len(tensors)
        for places, host, event in copies:
            if event is not None:
                event.synchronize()
            for place, number in zip(places, host.tolist(), strict=True):
                numbers[place] = number
        return numbers

    return wait


class UpdateScalars:
    """Learning rate and norm of the gradients of each optimizer, taken at its update.

    The norm is that of the gradients that the update uses: summed over accumulated batches, unscaled, clipped.  It is
    left out where it would take more than 0.2 % of the training time, for shards, and for sparse gradients.

    Args:
        optimizers: optimizers by key.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self._suffixes = {id(optimizer): f"/{key}" if key else "" for key, optimizer in optimizers.items()}
        self._values: dict[str, float | torch.Tensor] = {}
        self._spent, self._start = -math.inf, time.perf_counter()

    def joined(self, key: str, optimizer: Optimizer) -> None:
        """Take the numbers of another optimizer as well, if any are taken."""
        if self._suffixes:
            self._suffixes[id(optimizer)] = f"/{key}" if key else ""

    def update(self, optimizer: Optimizer) -> None:
        """Take the numbers of an optimizer that is about to update."""
        suffix = self._suffixes.get(id(optimizer))
        if suffix is None:
            return
        if (rate := largest(optimizer)) is not None:
            self._values[f"learning_rate{suffix}"] = rate
        start = time.perf_counter()
        if self._spent <= NORM_SHARE * (start - self._start) + NORM_FREE:
            if (norm := _norm(optimizer)) is not None:
                self._values[f"gradient_norm{suffix}"] = norm
            self._spent = max(0.0, self._spent + time.perf_counter() - start)  # the first one loads kernels

    def take(self) -> dict[str, float | torch.Tensor]:
        """Return the numbers since the last call."""
        values, self._values = self._values, {}
        return values


def _norm(optimizer: Optimizer) -> torch.Tensor | None:
    """Return the norm of an optimizer's gradients; ``None`` if there are none, or not all of them are here."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients or any(
        [g.layout is not torch.strided or (type(g) is not torch.Tensor and is_shard(g)) for g in gradients]
    ):
        return None
    if all([g.device.type == "cpu" for g in gradients]):
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms(gradients)))
    else:
        norm = torch.nn.utils.get_total_norm(gradients, 2.0, foreach=None)
    scale = getattr(optimizer, "grad_scale", None)  # a fused optimizer divides by it itself
    return norm if scale is None else norm / scale.to(norm.device)
