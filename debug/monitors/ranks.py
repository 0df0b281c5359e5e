"""Whether ranks that should hold the same weights do, and get other batches.

Each rank writes sums of its weights into the process group's key-value store; rank 0 compares what has come by its next
steps.  No rank waits for another, and nothing collective takes place.  What is found is in the findings of the run;
rules that look at stored steps of one rank do not find it again.
"""

from __future__ import annotations

import itertools
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.distributed.distributed_c10d import PrefixStore, _get_default_store
from torch.nn.parallel import DistributedDataParallel

from loopwise.ranks import rank, world_size
from loopwise.wrappers import is_sharded

from ..hooks import calls
from ..hooks.guards import is_observable
from ..model import names
from ..model.tensors import tensors
from ..model.vocabulary import Save, due
from ..rules import Finding
from ..statistics.sample import sample
from .monitor import Scalars

EQUAL = 1e-6
"""How far sums may be apart, over the sum of absolute values: the last place of a float32 is 1e-7."""
PARAMETERS = 512
"""That are compared, from all over the models."""
RANKS = 64
"""That are compared with rank 0, from all over the world."""
PATIENCE, GIVEN_UP = 64, 2
"""Steps after which what did not come is forgotten, and times after which nothing is waited for any more."""
SAME = 4
"""Batches running that are those of rank 0."""
ADVICE = (
    "wrap the model in DistributedDataParallel after it is made and loaded, change weights on all ranks alike, "
    "and leave no_sync() before the last backward pass of an update"
)
SAME_ADVICE = "use a DistributedSampler (and its set_epoch), or seed each rank's draws with its rank"
_watches = {wrapped: itertools.count() for wrapped in (True, False)}
"""Ranks make them in the same order; a check on rank 0 alone has a model that is not wrapped."""
_HEAD = struct.Struct("<qq")
"""Of what is written: the step, and how many parameters there are; the numbers come behind it."""


class Prints(NamedTuple):
    """What a rank says of itself at one step."""

    step: int
    numbers: NDArray[np.float64]
    """Sums and sums of absolute values, (parameters, 2); the last row is of the model's input, NaN for none."""

    def data(self) -> bytes:
        return _HEAD.pack(self.step, len(self.numbers)) + self.numbers.astype("<f8").tobytes()

    @classmethod
    def of(cls, data: bytes) -> Prints:
        step, count = _HEAD.unpack_from(data)
        return cls(step, np.frombuffer(data, "<f8", offset=_HEAD.size).reshape(count, 2))


class Replicas(calls.CallSubscriber):
    """Compares the weights of all ranks at steps that are saved; a monitor of a ``Watch``.

    Models that are not in `DistributedDataParallel` count as replicas where they begin with the same weights.

    Args:
        models: by key; those that are sharded, or replicated over some of the ranks only, are left alone.
        save: when.
    """

    def __init__(self, models: Mapping[str, nn.Module], save: Save) -> None:
        whole = {key: m for key, m in models.items() if not is_sharded(m) and not _is_of_some_ranks(m)}
        self._models, self._save, self._steps = whole, save, Counter[str]()
        self._wrapped = all(_is_wrapped(model) for model in whole.values())
        self._found: list[Finding] = []
        self._pending: dict[int, tuple[Prints, int]] = {}
        self._number, self._forgotten, self._same = 0, 0, 0
        self._before: Prints | None = None
        self._open = False
        self._input: torch.Tensor | None = None
        self._failed: Exception | None = None
        self._told: set[str] = set()
        self._live = dist.is_available() and dist.is_initialized() and world_size() > 1 and bool(whole)
        self._called: list[nn.Module] = []
        if self._live:
            number = f"{'wrapped' if self._wrapped else 'plain'}/{next(_watches[self._wrapped])}"
            self._store: Any = PrefixStore(f"loopwise/debug/replicas/{number}", _get_default_store())
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
        if self._failed is not None:
            raise self._failed
        if self._open:
            self._publish(step)
        self._open = False
        self._steps[mode] += 1
        self._compare()

    def findings(self) -> list[Finding]:
        found, self._found = self._found, []
        return found

    def close(self) -> None:
        for model in self._called:
            calls.unsubscribe(model, self)
        self._called.clear()
        self._compare()
        self._live = False

    # -- what this rank says ---------------------------------------------------------------------

    def called(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Keep the sums of the first input of a step that is compared."""
        if not self._open or self._input is not None:
            return
        try:
            if is_observable():
                self._input = _sums_of_input(args, kwargs)
        except Exception as error:  # for whoever ends the step
            self._failed, self._open = error, False

    def _parameters(self) -> list[tuple[str, nn.Parameter]]:
        plain = [(n, p) for n, p in names.parameters(self._models) if not hasattr(p, "_local_tensor")]
        some = [(n, p) for n, p in plain if p.is_floating_point() and p.layout is torch.strided and p.numel()]
        ignored = {id(parameter) for model in self._models.values() for parameter in _ignored(model)}
        some = [(n, p) for n, p in some if id(p) not in ignored]
        return some[:: -(-len(some) // PARAMETERS) or 1]

    def _publish(self, step: int) -> None:
        rows = [_sums(p) for _, p in self._parameters()]
        rows.append(torch.full((2,), torch.nan, dtype=torch.float64) if self._input is None else self._input)
        prints = Prints(step, torch.stack([row.to(rows[0].device) for row in rows]).cpu().numpy())
        self._input = None
        if rank() == 0:
            self._pending[self._number] = prints, 0
        elif rank() in _compared():
            self._store.set(f"{self._number}/{rank()}", prints.data())
            if self._number >= PATIENCE:  # rank 0 has read it or does not want it
                self._store.delete_key(f"{self._number - PATIENCE}/{rank()}")
        self._number += 1

    # -- what rank 0 makes of it -----------------------------------------------------------------

    def _compare(self) -> None:
        for number, (own, looks) in list(self._pending.items()):
            if not self._live:
                self._pending.clear()
                return
            keys = {other: f"{number}/{other}" for other in _compared()}
            if self._store.check(list(keys.values())):
                del self._pending[number]
                self._forgotten = 0
                others = {other: Prints.of(self._store.get(key)) for other, key in keys.items()}
                for key in keys.values():
                    self._store.delete_key(key)
                self._look(own, others)
            elif looks < PATIENCE:
                self._pending[number] = own, looks + 1
                return  # later ones have not come either
            else:
                del self._pending[number]
                self._forgotten += 1
                self._live = self._forgotten < GIVEN_UP

    def _look(self, own: Prints, others: Mapping[int, Prints]) -> None:
        if not all(o.step == own.step and o.numbers.shape == own.numbers.shape for o in others.values()):
            return  # other models, or other steps
        sums = np.stack([own.numbers[:-1, 0], *(o.numbers[:-1, 0] for o in others.values())])
        apart = np.flatnonzero(np.abs(sums - sums[0]).max(0) > EQUAL * own.numbers[:-1, 1])
        if len(apart) and own.step < 0 and not self._wrapped:
            self._live = False  # they never were replicas
        elif len(apart):
            self._tell_apart(max(own.step, 0), apart, [0, *others], sums)
        self._look_at_inputs(own, others)
        self._before = own

    def _tell_apart(self, step: int, apart: NDArray[np.intp], ranks: list[int], sums: Any) -> None:
        found = [(self._parameters()[i][0], i) for i in apart.tolist()]
        evidence = {
            f"sum of {name} by rank": [(r, float(v)) for r, v in zip(ranks, sums[:, i], strict=True)]
            for name, i in found[:3]
        }
        shown = ", ".join(name for name, _ in found[:3]) + (
            f" and {len(found) - 3} more" if len(found) > 3 else ""
        )
        what = f"ranks that train one model hold different weights: {shown}"
        self._tell("replicas_differ", "critical", step, what, tuple(n for n, _ in found), evidence, ADVICE)

    def _look_at_inputs(self, own: Prints, others: Mapping[int, Prints]) -> None:
        mine = own.numbers[-1]
        if np.isnan(mine).any():
            return
        fresh = self._before is None or not np.array_equal(mine, self._before.numbers[-1])
        same = [r for r, other in others.items() if np.array_equal(other.numbers[-1], mine)]
        self._same = self._same + 1 if same and fresh else 0
        if self._same >= SAME:
            evidence = {f"sum of the input on rank {r}": [(own.step, float(mine[0]))] for r in [0, *same][:3]}
            what = f"ranks {', '.join(map(str, [0, *same]))} get the same batches, {self._same} in a row"
            self._tell("same_batch_on_ranks", "warning", own.step, what, ("input",), evidence, SAME_ADVICE)

    def _tell(
        self, rule: str, severity: str, step: int, what: str, tensors: Any, evidence: Any, advice: str
    ) -> None:
        if rule not in self._told:
            self._told.add(rule)
            self._found.append(Finding(rule, severity, step, "train", what, tensors, evidence, advice))


def _compared() -> range:
    """Ranks that rank 0 is compared with."""
    world = world_size()
    return range(1, world, -(-(world - 1) // RANKS) if world > 1 else 1)


@torch.no_grad()
def _sums(tensor: torch.Tensor) -> torch.Tensor:
    values = sample(tensor).double()
    return torch.stack([values.sum(), values.abs().sum()])


def _sums_of_input(args: Any, kwargs: Any) -> torch.Tensor | None:
    given = [tensor for _, tensor in [*tensors("", args), *tensors("", kwargs)] if tensor.numel() > 1]
    return _sums(given[0]) if given and not given[0].is_complex() else None


def _wrappers(model: nn.Module) -> list[DistributedDataParallel]:
    return [module for module in model.modules() if isinstance(module, DistributedDataParallel)]


def _is_wrapped(model: nn.Module) -> bool:
    return bool(_wrappers(model))


def _is_of_some_ranks(model: nn.Module) -> bool:
    return any(wrapper.process_group.size() != world_size() for wrapper in _wrappers(model))


def _ignored(model: nn.Module) -> Iterator[nn.Parameter]:
    """That are left to each rank."""
    for wrapper in _wrappers(model):
        for name, parameter in wrapper.module.named_parameters():
            if name in wrapper.parameters_to_ignore:
                yield parameter
