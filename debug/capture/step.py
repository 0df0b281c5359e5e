"""What one step saves, as it comes: tensors into a snapshot, statistics into tables."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..model.shards import strided
from ..statistics.table import columns, table
from ..store.host_buffer import Signature, Snapshot
from .collection import Collection

Names = tuple[str, ...]
UPDATES = ("weight", "bias", "gradient", "optimizer_state")
"""Kinds of what is taken at an update."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a block's layout: tensors that one collection put in together, or a table of theirs."""

    collection: str
    names: Names
    signature: Signature
    offsets: tuple[int, ...]
    """Of each tensor, or of the table alone."""
    columns: Names = ()
    """Of a table."""
    shards: tuple[Any, ...] = field(default=(), compare=False)
    """Of each tensor its place in a larger one, where there are such."""

    def group(self) -> dict[str, Any]:
        """As the index has it."""
        if self.columns:
            of = [[_plain(dtype), list(shape)] for dtype, shape in self.signature]
            found = {"collection": self.collection, "rows": list(self.names), "columns": list(self.columns)}
            return found | {"offset": self.offsets[0]} | ({"of": of} if of else {})
        shards = self.shards or (None,) * len(self.names)
        tensors = [
            [name, _plain(dtype), list(shape), offset, dtype.itemsize * shape.numel()]
            + ([shard] if shard else [])
            for name, (dtype, shape), offset, shard in zip(
                self.names, self.signature, self.offsets, shards, strict=True
            )
        ]
        return {"collection": self.collection, "tensors": tensors}


class Layout(tuple[Part, ...]):
    """Equal for blocks that hold the same at the same places.  Its hash, of every name in it, is taken once."""

    @functools.cached_property
    def _hash(self) -> int:
        return super().__hash__()

    def __hash__(self) -> int:
        return self._hash


Pairs = list[tuple[str, torch.Tensor]]
Waiting = dict[Collection, Pairs]
"""What statistics are to be made of."""
REDUCED = ("min", "max", "mean", "std", "l2")
"""Statistics that are saved where raw tensors were wanted and the storage is behind (policy ``reduce``)."""


@dataclass
class Saving:
    """One step on its way to disk.

    Args:
        record: step, mode and marks, as the index has them.
        collections: those that are due.
        late: those that are due for weights, gradients and optimizer state only.
        snapshot: called with the first tensor: where tensors go, and whether raw ones may; ``None``: nowhere.
        failed: called with a collection that something went wrong in, and what.
        memory: which tensors of a group a collection wants; shared by all steps.
        scratch: memory for what statistics are made of later; shared by all steps.
        reduces: save statistics where raw tensors may not go.
    """

    record: dict[str, Any]
    collections: Sequence[Collection]
    late: Sequence[Collection]
    snapshot: Callable[[], tuple[Snapshot, bool] | None]
    failed: Callable[[Collection, Exception], None]
    memory: dict[tuple[Collection, str, Names], Sequence[int]]
    scratch: Snapshot
    reduces: bool = False
    parts: list[Part] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    """Names of tensors that came."""
    calls: Counter[str] = field(default_factory=Counter)
    """Input or output -> how often it came in this step."""
    _waiting: dict[tuple[Names, torch.device], Waiting] = field(default_factory=dict)
    _placed: dict[Names, tuple[Signature, tuple[int, ...]]] = field(default_factory=dict)
    ready: list[Any] = field(default_factory=list)
    """On GPUs, the events after which the snapshot is filled."""

    @property
    def all(self) -> Sequence[Collection]:
        """The collections that are due for anything."""
        return (*self.collections, *self.late)

    def put(
        self,
        kind: str,
        names: Names,
        tensors: Sequence[torch.Tensor],
        only: Sequence[Collection] | None = None,
    ) -> None:
        """Save tensors in every due collection that wants them.

        Args:
            kind: one of ``KINDS``.
            names: of the tensors; the same object for the same group of tensors makes it fast.
            tensors: of any layout, device and dtype; nothing is kept of them but copies.
            only: collections that the tensors are known to belong to; default: by kind and name.
        """
        by_name = self.all if kind in UPDATES else self.collections
        for collection in by_name if only is None else only:
            try:
                chosen = range(len(names)) if only is not None else self._chosen(collection, kind, names)
                if len(chosen) == len(names):
                    self._keep(collection, kind, names, tensors)
                elif chosen:
                    picked = tuple([names[i] for i in chosen])
                    self._keep(collection, kind, picked, [tensors[i] for i in chosen])
            except Exception as error:
                self.failed(collection, error)

    def _keep(self, collection: Collection, kind: str, names: Names, tensors: Sequence[torch.Tensor]) -> None:
        self.seen.update(names)
        place = self.snapshot()
        if place is None:
            return
        parts, (snapshot, raw) = strided(names, tensors), place
        statistics = collection.statistics
        if collection.raw and raw:
            if parts.names not in self._placed:  # another collection may have had them
                self._placed[parts.names] = snapshot.put(parts.tensors)
            signature, offsets = self._placed[parts.names]
            self.parts.append(Part(collection.name, parts.names, signature, offsets, shards=parts.shards))
        elif collection.raw and self.reduces:
            statistics = tuple(dict.fromkeys((*statistics, *REDUCED)))
        if statistics:
            whole = parts.whole if kind in UPDATES else self._copies(parts.whole)
            for name, tensor in zip(names, whole, strict=True):
                waiting = self._waiting.setdefault((statistics, tensor.device), {})
                waiting.setdefault(collection, []).append((name, tensor))

    def _copies(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """What may be changed in place before the tables are made."""
        if all([t.device.type == "cpu" and t.layout is torch.strided for t in tensors]):
            return self.scratch.copies(tensors)
        return [tensor.detach().clone() for tensor in tensors]

    def make_tables(self) -> None:
        """Of what waits for statistics, all at once: many tensors cost little more than one."""
        waiting, self._waiting = self._waiting, {}
        for (statistics, _), by_collection in waiting.items():
            self._make_tables(statistics, by_collection)

    def _make_tables(self, statistics: Names, waiting: Waiting) -> None:
        try:
            found = table([tensor for pairs in waiting.values() for _, tensor in pairs], statistics)
            rows = torch.split(found, [len(pairs) for pairs in waiting.values()])
            self.parts += [
                self._rows(collection, pairs, columns(statistics), values)
                for (collection, pairs), values in zip(waiting.items(), rows, strict=True)
            ]
        except Exception as error:
            if len(waiting) == 1:
                self.failed(next(iter(waiting)), error)
            else:  # who is at fault?
                for collection, pairs in waiting.items():
                    self._make_tables(statistics, {collection: pairs})

    def _rows(self, collection: Collection, pairs: Pairs, heads: Names, values: torch.Tensor) -> Part:
        place = self.snapshot()
        assert place is not None
        of = tuple([(tensor.dtype, tensor.shape) for _, tensor in pairs])
        return _table(collection, tuple([name for name, _ in pairs]), heads, values, of, place[0])

    def add_table(
        self, collection: Collection, names: Names, heads: Names, values: torch.Tensor, of: Signature
    ) -> None:
        """Save a table: float64 of shape (names, heads)."""
        place = self.snapshot()
        if place is not None:
            self.parts.append(_table(collection, names, heads, values, of, place[0]))

    def add_scalars(self, values: Mapping[str, float | torch.Tensor]) -> None:
        """Save numbers in the due collections that want them."""
        names = tuple(values)
        for collection in self.collections:
            try:
                chosen = tuple([names[i] for i in self._chosen(collection, "scalar", names)])
                if chosen and (place := self.snapshot()):
                    self.seen.update(chosen)
                    for group in _by_device({name: _number(values[name]) for name in chosen}):
                        numbers = torch.stack(list(group.values())).unsqueeze(1)
                        self.parts.append(_table(collection, tuple(group), ("value",), numbers, (), place[0]))
            except Exception as error:
                self.failed(collection, error)

    def leave_out(self, collection: Collection) -> None:
        """Save nothing more of it."""
        self.collections = [c for c in self.collections if c is not collection]
        self.late = [c for c in self.late if c is not collection]

    def _chosen(self, collection: Collection, kind: str, names: Names) -> Sequence[int]:
        key = (collection, kind, names)
        if key not in self.memory:
            self.memory[key] = [i for i, name in enumerate(names) if collection.wants(kind, name)]
        return self.memory[key]

    def layout(self) -> Layout:
        return Layout(self.parts)

    def groups(self) -> list[dict[str, Any]]:
        return [part.group() for part in self.parts]


def _table(
    collection: Collection,
    names: Names,
    heads: Names,
    values: torch.Tensor,
    of: Signature,
    snapshot: Snapshot,
) -> Part:
    """``values`` is float64 of shape (names, heads)."""
    _, offsets = snapshot.put([values])
    return Part(collection.name, names, of, offsets, heads)


def _by_device(numbers: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    groups: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, number in numbers.items():
        groups.setdefault(number.device, {})[name] = number
    return list(groups.values())


def _number(value: float | torch.Tensor) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach().double().mean() if value.numel() != 1 else value.detach().double().reshape(())
    return torch.tensor(float(value), dtype=torch.float64)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
