"""Monitor that compares the weights and inputs of the ranks of one model.

Each rank writes sums of its weights into the process group's key-value store.  Rank 0 compares the sums that have
arrived when one of its later steps ends.  No rank waits for another, and there is no collective operation.  The findings
depend on all ranks, so that they cannot be made again from the stored steps of one rank.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.nn.parallel import DistributedDataParallel

from loopwise.ranks import rank, world_size
from loopwise.torch_internals import default_store
from loopwise.wrappers import is_shard, is_sharded

from ..hooks import calls
from ..hooks.guards import is_observable
from ..model import names
from ..model.tensors import tensors
from ..model.vocabulary import Save, due
from ..rules import RULES, Finding
from ..rules.engine import Engine
from ..rules.ranks import RankComparison
from ..rules.thresholds import Selection, select
from ..statistics.sample import sample
from .monitor import Scalars

PARAMETERS = 512
"""Largest number of compared parameters; they are taken at equal distances from all models."""
RANKS = 64
"""Largest number of ranks that are compared with rank 0; their numbers are evenly spaced."""
PATIENCE, GIVEN_UP = 64, 2
"""Steps after which sums that did not arrive are given up, and successive times after which comparing ends."""
_counters = {wrapped: itertools.count() for wrapped in (True, False)}
"""Numbers of the monitors, which all ranks create in the same order.  Those of models without DDP are counted apart,
because a preflight on rank 0 alone has a model without DDP."""


class Sums(NamedTuple):
    """Sums of one rank at one step."""

    step: int
    rows: NDArray[np.float64]
    """Sum and sum of absolute values of each parameter, (parameters + 1, 2); the last row is of the model's input, NaN
    if there is none."""

    def to_bytes(self) -> bytes:
        return np.array([self.step, *self.rows.flat], "<f8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Sums:
        numbers = np.frombuffer(data, "<f8")
        return cls(int(numbers[0]), numbers[1:].reshape(-1, 2))


class RankMonitor(calls.CallSubscriber):
    """Compares the weights of all ranks at saved steps.

    Models that are not in `DistributedDataParallel` count as replicas if they begin with equal weights.

    Args:
        models: models by key; those that are sharded, or replicated over some of the ranks only, are left out.
        save: schedule of the saved steps.
        rules: the selected rules; default: all rules about ranks.
    """

    def __init__(self, models: Mapping[str, nn.Module], save: Save, rules: Selection | None = None) -> None:
        whole = {key: m for key, m in models.items() if not is_sharded(m) and not _is_of_some_ranks(m)}
        self._models, self._save, self._steps = whole, save, Counter[str]()
        self._wrapped = all(_wrappers(model) for model in whole.values())
        self._engine = Engine(select(True, "ranks") if rules is None else rules, "ranks")
        self._findings: list[Finding] = []
        self._pending: dict[int, tuple[Sums, int]] = {}
        self._number = self._given_up = self._repeats = 0
        self._previous: Sums | None = None
        self._open = False
        self._input: torch.Tensor | None = None
        self._error: Exception | None = None
        self._live = dist.is_available() and dist.is_initialized() and world_size() > 1 and bool(whole)
        self._called: list[nn.Module] = []
        if self._live:
            number = f"{'wrapped' if self._wrapped else 'plain'}/{next(_counters[self._wrapped])}"
            self._store: Any = PrefixStore(f"loopwise/debug/replicas/{number}", default_store())
            if self._wrapped:
                self._called = list(whole.values())[:1]
                calls.subscribe(self._called[0], self)

    def begin(self, step: int, mode: str) -> None:
        if self._live and not self._number:
            self._publish(-1)  # before the first update
        self._open = self._live and mode == "train" and due(self._save, mode, self._steps[mode])
        for model in self._called:
            calls.refresh(model)

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        if self._error is not None:
            raise self._error
        if self._open:
            self._publish(step)
        self._open = False
        self._steps[mode] += 1
        self._read()

    def findings(self) -> list[Finding]:
        findings, self._findings = self._findings, []
        return findings

    def close(self) -> None:
        for model in self._called:
            calls.unsubscribe(model, self)
        self._called.clear()
        self._read()
        self._live = False

    # -- writing the sums of this rank -----------------------------------------------------------

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Keep the sums of the first input of a step that is compared."""
        if not self._open or self._input is not None:
            return
        try:
            if is_observable():
                self._input = _sums_of_input(args, kwargs)
        except Exception as error:  # raised at the end of the step, since a hook must not raise
            self._error, self._open = error, False

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        ignored = {id(p) for model in self._models.values() for p in _ignored(model)}
        compared = [
            (name, p)
            for name, p in names.parameters(self._models)
            if p.is_floating_point() and p.layout is torch.strided and p.numel()
            if not is_shard(p) and id(p) not in ignored
        ]
        return compared[:: -(-len(compared) // PARAMETERS) or 1]

    def _publish(self, step: int) -> None:
        rows = [_sums(p) for _, p in self._parameters()]
        rows.append(torch.full((2,), torch.nan, dtype=torch.float64) if self._input is None else self._input)
        sums = Sums(step, torch.stack([row.to(rows[0].device) for row in rows]).cpu().numpy())
        self._input = None
        if rank() == 0:
            self._pending[self._number] = sums, 0
        elif rank() in _compared():
            self._store.set(f"{self._number}/{rank()}", sums.to_bytes())
            if self._number >= PATIENCE:  # rank 0 has read these sums, or has given them up
                self._store.delete_key(f"{self._number - PATIENCE}/{rank()}")
        self._number += 1

    # -- comparing, on rank 0 --------------------------------------------------------------------

    def _read(self) -> None:
        """Compare the sums of all earlier steps for which every rank's sums have arrived."""
        for number, (own, tries) in list(self._pending.items()):
            if not self._live:
                self._pending.clear()
                return
            keys = {other: f"{number}/{other}" for other in _compared()}
            arrived = self._store.check(list(keys.values()))
            if not arrived and tries < PATIENCE:
                self._pending[number] = own, tries + 1
                return  # the sums of later steps have not arrived either
            del self._pending[number]
            self._given_up = 0 if arrived else self._given_up + 1
            if arrived:
                others = {other: Sums.from_bytes(self._store.get(key)) for other, key in keys.items()}
                for key in keys.values():
                    self._store.delete_key(key)
                self._compare(own, others)
            elif self._given_up >= GIVEN_UP:
                self._live = False

    def _compare(self, own: Sums, others: Mapping[int, Sums]) -> None:
        if any(o.step != own.step or o.rows.shape != own.rows.shape for o in others.values()):
            return  # the ranks train different models, or are at different steps
        inputs = self._equal_inputs(own, others)
        comparison = RankComparison(
            ranks=[0, *others],
            names=[name for name, _ in self._parameters()],
            sums=np.stack([own.rows[:-1, 0], *(other.rows[:-1, 0] for other in others.values())]),
            sizes=own.rows[:-1, 1],
            step=max(own.step, 0),
            inputs=inputs,
            repeats=self._repeats,
        )
        never_equal = own.step < 0 and not self._wrapped
        if never_equal and comparison.differing(RULES["replicas_differ"].thresholds["difference"]):
            self._live = False  # the models are no replicas
        else:
            self._findings += self._engine.apply(comparison, comparison.step)
        if self._engine.failures:
            raise RuntimeError(self._engine.failures[0])
        self._previous = own

    def _equal_inputs(self, own: Sums, others: Mapping[int, Sums]) -> dict[int, float]:
        """Return the ranks with the same new input as rank 0, and count how often in a row there were any."""
        row = own.rows[-1]
        if np.isnan(row).any():
            return {}
        is_new = self._previous is None or not np.array_equal(row, self._previous.rows[-1])
        equal = [other for other, sums in others.items() if np.array_equal(sums.rows[-1], row)]
        self._repeats = self._repeats + 1 if equal and is_new else 0
        return dict.fromkeys([0, *equal], float(row[0])) if self._repeats else {}


def _compared() -> range:
    """Return the ranks that are compared with rank 0."""
    world = world_size()
    return range(1, world, -(-(world - 1) // RANKS) if world > 1 else 1)


@torch.no_grad()
def _sums(tensor: torch.Tensor) -> torch.Tensor:
    values = sample(tensor).double()
    return torch.stack([values.sum(), values.abs().sum()])


def _sums_of_input(args: Any, kwargs: Any) -> torch.Tensor | None:
    inputs = [tensor for _, tensor in [*tensors("", args), *tensors("", kwargs)] if tensor.numel() > 1]
    return _sums(inputs[0]) if inputs and not inputs[0].is_complex() else None


def _wrappers(model: nn.Module) -> list[DistributedDataParallel]:
    return [module for module in model.modules() if isinstance(module, DistributedDataParallel)]


def _is_of_some_ranks(model: nn.Module) -> bool:
    return any(wrapper.process_group.size() != world_size() for wrapper in _wrappers(model))


def _ignored(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that DDP ignores by the user's choice."""
    named = [(w, *entry) for w in _wrappers(model) for entry in w.module.named_parameters()]
    return [parameter for wrapper, name, parameter in named if name in wrapper.parameters_to_ignore]
