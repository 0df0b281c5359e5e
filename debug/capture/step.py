"""One step's tensors and statistics, collected into a host buffer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..model.shards import strided
from ..statistics.table import columns, table
from ..store.group import Group, Names, Signature
from ..store.host_buffer import HostBuffer
from .collection import Collection

UPDATES = ("weight", "bias", "gradient", "optimizer_state")
"""Kinds of tensors that are saved at an update."""
REDUCED = ("min", "max", "mean", "std", "l2")
"""Statistics that ``on_backlog="reduce"`` saves in place of raw tensors."""
Named = list[tuple[str, torch.Tensor]]
Queue = dict[Collection, Named]
"""Tensors whose statistics are still to be computed."""


@dataclass
class PendingStep:
    """A step that is being saved.

    Args:
        record: the step's record in the index: its numbers, mode and marks.
        collections: collections that are due.
        late: collections that are due for weights, gradients and optimizer state only.
        buffer: function that returns the step's buffer and whether raw tensors may go into it, or ``None`` if nothing
            is written; called with the first tensor.
        failed: function that is called with a collection and the error that occurred in it.
        memory: indices of the tensors of a group that a collection wants; shared by all steps.
        scratch: memory for copies of tensors whose statistics are computed later; shared by all steps.
        reduces: save statistics of raw tensors that may not go into the buffer.

    Attributes:
        groups: tensors and tables in the buffer.
        seen: names of the tensors that came.
        calls: name of an input or output -> number of times that it came.
        events: CUDA events after which the buffer is filled.
    """

    record: dict[str, Any]
    collections: Sequence[Collection]
    late: Sequence[Collection]
    buffer: Callable[[], tuple[HostBuffer, bool] | None]
    failed: Callable[[Collection, Exception], None]
    memory: dict[tuple[Collection, str, Names], Sequence[int]]
    scratch: HostBuffer
    reduces: bool = False
    groups: list[Group] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    events: list[Any] = field(default_factory=list)
    _queues: dict[tuple[Names, torch.device], Queue] = field(default_factory=dict)
    _placed: dict[Names, tuple[Signature, tuple[int, ...]]] = field(default_factory=dict)

    @property
    def all(self) -> Sequence[Collection]:
        """Collections that are due at this step, for any kind of tensor."""
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
            names: names of the tensors; passing the same object for the same tensors is faster.
            tensors: tensors of any layout, device and dtype; they are copied.
            only: collections that want all of the tensors; default: decided by kind and names.
        """
        by_name = self.all if kind in UPDATES else self.collections
        for collection in by_name if only is None else only:
            try:
                wanted = range(len(names)) if only is not None else self._wanted(collection, kind, names)
                if len(wanted) == len(names):
                    self._save(collection, kind, names, tensors)
                elif wanted:
                    wanted_names = tuple([names[i] for i in wanted])
                    self._save(collection, kind, wanted_names, [tensors[i] for i in wanted])
            except Exception as error:
                self.failed(collection, error)

    def _save(self, collection: Collection, kind: str, names: Names, tensors: Sequence[torch.Tensor]) -> None:
        self.seen.update(names)
        place = self.buffer()
        if place is None:
            return
        parts, (buffer, raw) = strided(names, tensors), place
        statistics = tuple(collection.statistics)
        if collection.raw and raw:
            if parts.names not in self._placed:  # another collection may have placed them
                self._placed[parts.names] = buffer.put(parts.tensors)
            signature, offsets = self._placed[parts.names]
            self.groups.append(Group(collection.name, parts.names, signature, offsets, shards=parts.shards))
        elif collection.raw and self.reduces:
            statistics = tuple(dict.fromkeys((*statistics, *REDUCED)))
        if statistics:
            local_tensors = parts.local if kind in UPDATES else self._copies(parts.local)
            for name, tensor in zip(names, local_tensors, strict=True):
                queue = self._queues.setdefault((statistics, tensor.device), {})
                queue.setdefault(collection, []).append((name, tensor))

    def _copies(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Return copies, since the tensors may be changed in place before their statistics are computed."""
        if all([t.device.type == "cpu" and t.layout is torch.strided for t in tensors]):
            return self.scratch.copies(tensors)
        return [tensor.detach().clone() for tensor in tensors]

    def compute_statistics(self) -> None:
        """Compute the statistics of all queued tensors in one batch, which costs little more than for one tensor."""
        queues, self._queues = self._queues, {}
        for (statistics, _), queue in queues.items():
            self._compute(statistics, queue)

    def _compute(self, statistics: Names, queue: Queue) -> None:
        try:
            values = table([tensor for named in queue.values() for _, tensor in named], statistics)
            by_collection = torch.split(values, [len(named) for named in queue.values()])
            self.groups += [
                self._table_of(collection, named, columns(statistics), rows)
                for (collection, named), rows in zip(queue.items(), by_collection, strict=True)
            ]
        except Exception as error:
            if len(queue) == 1:
                self.failed(next(iter(queue)), error)
            else:  # try again one by one, so that only the collection at fault fails
                for collection, named in queue.items():
                    self._compute(statistics, {collection: named})

    def _table_of(self, collection: Collection, named: Named, heads: Names, values: torch.Tensor) -> Group:
        place = self.buffer()
        assert place is not None
        signature = tuple([(tensor.dtype, tensor.shape) for _, tensor in named])
        return _table(collection, tuple([name for name, _ in named]), heads, values, signature, place[0])

    def add_table(
        self, collection: Collection, names: Names, heads: Names, values: torch.Tensor, signature: Signature
    ) -> None:
        """Save a table of numbers.

        Args:
            collection: owner of the table.
            names: names of the rows.
            heads: names of the columns.
            values: float64 of shape (names, heads).
            signature: dtype and shape of the tensor that each row is about; may be empty.
        """
        place = self.buffer()
        if place is not None:
            self.groups.append(_table(collection, names, heads, values, signature, place[0]))

    def add_scalars(self, values: Mapping[str, float | torch.Tensor]) -> None:
        """Save numbers in the due collections that want them."""
        names = tuple(values)
        for collection in self.collections:
            try:
                wanted = tuple([names[i] for i in self._wanted(collection, "scalar", names)])
                if wanted and (place := self.buffer()):
                    self.seen.update(wanted)
                    for numbers in _by_device({name: _number(values[name]) for name in wanted}):
                        column = torch.stack(list(numbers.values())).unsqueeze(1)
                        group = _table(collection, tuple(numbers), ("value",), column, (), place[0])
                        self.groups.append(group)
            except Exception as error:
                self.failed(collection, error)

    def leave_out(self, collection: Collection) -> None:
        """Stop saving in a collection."""
        self.collections = [c for c in self.collections if c is not collection]
        self.late = [c for c in self.late if c is not collection]

    def _wanted(self, collection: Collection, kind: str, names: Names) -> Sequence[int]:
        """Return the indices of the names that the collection wants."""
        key = (collection, kind, names)
        if key not in self.memory:
            self.memory[key] = [i for i, name in enumerate(names) if collection.wants(kind, name)]
        return self.memory[key]


def _table(
    collection: Collection,
    names: Names,
    heads: Names,
    values: torch.Tensor,
    signature: Signature,
    buffer: HostBuffer,
) -> Group:
    """Put float64 ``values`` of shape (names, heads) into the buffer."""
    _, offsets = buffer.put([values])
    return Group(collection.name, names, signature, offsets, heads)


def _by_device(numbers: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    groups: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, number in numbers.items():
        groups.setdefault(number.device, {})[name] = number
    return list(groups.values())


def _number(value: float | torch.Tensor) -> torch.Tensor:
    """Return a number, or the mean of a tensor, as a tensor without dimensions."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().mean() if value.numel() != 1 else value.detach().double().reshape(())
    return torch.tensor(float(value), dtype=torch.float64)
