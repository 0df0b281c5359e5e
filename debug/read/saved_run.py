"""Reads what a run saved, while it goes on or after it."""

from __future__ import annotations

import functools
import os
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from loopwise.errors import InputError, StateError
from loopwise.run import Run, read

from ..model.vocabulary import pattern
from ..rules import Finding
from ..rules.saved_steps import SavedStepRules
from ..rules.thresholds import Rules, select
from ..statistics.table import single
from ..store.blocks import Blocks
from ..store.index import Block, Index
from ..store.join_shards import joined
from ..store.layout import Layout
from .query import Lookup, unique

WAIT = 0.1
"""Seconds between two looks for a step that is waited for."""


class Fault(NamedTuple):
    """A block that cannot be trusted."""

    step: int
    rank: int
    what: str


class SavedRun:
    """Reader of the tensors and findings that a ``Watch`` saved, made by ``open_run``.

    Steps are counted over all modes, or in ``mode`` where that is given.  Of several ranks the lowest one
    that has a tensor speaks, and shards are put together; ``rank`` asks for what one rank has.

    Args:
        run: a run that exists.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        folder = f"{self._run.path}/debug"
        self._index = Index(self._run.fs, folder, self._run.local)
        self._blocks = Blocks(self._run.fs, folder, self._run.local)
        self._lookup = Lookup(self._index)
        self.refresh()

    @property
    def path(self) -> str:
        return self._run.path

    @property
    def info(self) -> dict[str, Any]:
        """The contents of ``run.json`` as they are now."""
        return self._run.info()

    @property
    def ended(self) -> bool:
        """Whether the run has finished or failed; one that was killed seems to go on."""
        return bool(self.info["state"] != "running")

    @property
    def modes(self) -> list[str]:
        """Modes that have steps."""
        self._index.refresh()
        return [mode for mode, steps in self._index.modes.items() if steps]

    @property
    def ranks(self) -> list[int]:
        """Ranks that wrote something."""
        self._index.refresh()
        return self._index.ranks

    @property
    def events(self) -> list[dict[str, Any]]:
        """Things to know, such as saves that were dropped: dicts with ``event``, ``step`` and ``rank``."""
        self._index.refresh()
        return list(self._index.events)

    @property
    def torn(self) -> int:
        """Records that were lost: cut by the end of a process, damaged, or of a damaged layout."""
        self._index.refresh()
        return self._index.torn

    def refresh(self) -> None:
        """Take in what was written since; on remote storage now, not after the second that others wait."""
        self._index.refresh(now=True)

    def steps(self, mode: str | None = None) -> list[int]:
        """Saved steps in order.

        Raises:
            InputError: no such mode.
        """
        return list(self._lookup.steps(mode))

    def collections(self) -> list[str]:
        """Collections in order of first appearance."""
        groups = [group for layout in self._lookup.layouts() for group in layout.groups]
        return unique([group["collection"]] for group in groups)

    def names(
        self,
        regex: str | None = None,
        *,
        collection: str | None = None,
        step: int | None = None,
        mode: str | None = None,
    ) -> list[str]:
        """Tensors saved whole or as statistics, and scalars, in order of first appearance.

        Args:
            regex: searched in the names.
            collection: of this collection only.
            step: saved at this step, rather than at any.
            mode: saved in this mode.

        Raises:
            InputError: a step or mode that is not there, a regular expression that is none.
        """
        wanted = pattern(regex or "", f"regex={regex!r}")
        if step is None:
            self._lookup.by_step(mode)
            layouts = self._lookup.layouts(mode)
        else:
            layouts = [block.layout for block in self._lookup.at(step, mode, None)]
        found = unique(layout.names(collection) for layout in layouts)
        return [name for name in found if wanted.search(name)] if regex else found

    def has(self, name: str, step: int, *, mode: str | None = None, rank: int | None = None) -> bool:
        """Whether the step has the tensor, its statistics or the scalar."""
        try:
            return any(name in block.layout for block in self._lookup.at(step, mode, rank))
        except InputError:
            return False

    def record(self, step: int, *, mode: str | None = None, rank: int | None = None) -> dict[str, Any]:
        """What the index says of a step: ``step``, ``mode``, ``mode_step``, ``time`` (seconds since the epoch)
        and ``marks``.

        Raises:
            InputError: there is no such step.
        """
        block = self._lookup.at(step, mode, rank)[0]
        return {key: getattr(block, key) for key in ("step", "mode", "mode_step", "time", "marks")}

    def value(
        self, name: str, step: int, *, mode: str | None = None, rank: int | None = None
    ) -> torch.Tensor:
        """A tensor as it was saved, on the CPU; a scalar as a tensor of no dimensions, float64.

        A large one of a local run is a private mapping of the file, read from disk as it is touched.

        Raises:
            InputError: the step does not have it.
            StateError: its bytes, or other ranks' shards of it, are not there.
        """
        blocks = self._lookup.at(step, mode, rank)
        found = [(block, entry) for block in blocks if (entry := block.layout.tensor(name)) is not None]
        if found:
            if rank is None and found[0][1].start is not None:
                return joined(found, self._blocks.tensor)
            return self._blocks.tensor(*found[0])
        for block in blocks:
            if "value" in (cells := block.layout.statistic_offsets(name)):
                return torch.tensor(self._blocks.number(block, cells["value"]), dtype=torch.float64)
        raise self._lookup.missing(name, [block.layout for block in blocks], "values")

    def statistics(
        self, name: str, step: int, *, mode: str | None = None, rank: int | None = None
    ) -> dict[str, float]:
        """All saved statistics of a tensor; none where it was saved whole only.

        Raises:
            InputError: the step does not have it.
            StateError: their bytes are not there.
        """
        blocks = self._lookup.at(step, mode, rank)
        having = [block for block in blocks if name in block.layout]
        if not having:
            raise self._lookup.missing(name, [block.layout for block in blocks], "statistics")
        cells = having[0].layout.statistic_offsets(name).items()
        return {key: self._blocks.number(having[0], cell) for key, cell in cells if key != "value"}

    def statistic(
        self, name: str, statistic: str, step: int, *, mode: str | None = None, rank: int | None = None
    ) -> float:
        """A saved statistic of a tensor; computed where the tensor itself was saved.

        A saved one of a tensor in shards is that of one rank's shard.

        Raises:
            InputError: the step does not have it, or there is no such statistic.
            StateError: its bytes are not there.
        """
        blocks = self._lookup.at(step, mode, rank)
        for block in blocks:
            if statistic in (cells := block.layout.statistic_offsets(name)):
                return self._blocks.number(block, cells[statistic])
        if not any(_has_values(name, block.layout) for block in blocks):
            raise self._lookup.missing(name, [block.layout for block in blocks], statistic)
        return single(self.value(name, step, mode=mode, rank=rank), statistic)

    def shape(
        self, name: str, step: int, *, mode: str | None = None, rank: int | None = None
    ) -> tuple[int, ...]:
        """Shape of a tensor, also where only statistics were saved.

        Raises:
            InputError: the step does not have it, or not its shape.
        """
        return self._form(name, step, mode, rank)[1]

    def dtype(self, name: str, step: int, *, mode: str | None = None, rank: int | None = None) -> torch.dtype:
        """Dtype of a tensor, also where only statistics were saved.

        Raises:
            InputError: the step does not have it, or not its dtype.
        """
        return self._form(name, step, mode, rank)[0]

    def series(
        self, name: str, statistic: str | None = None, *, mode: str | None = None, rank: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """A scalar, or a statistic of a tensor, over all steps that have it.

        Steps whose bytes are lost are left out; ``verify`` lists them.

        Returns:
            Steps and values, of equal length.

        Raises:
            InputError: no step has it.
        """
        wanted = statistic or "value"
        places: list[tuple[int, Block, int | None]] = []
        cells: dict[Layout, int | None] = {}
        for step, blocks in self._lookup.having(name, mode, rank):
            for block in blocks:
                if block.layout not in cells:
                    cells[block.layout] = block.layout.statistic_offsets(name).get(wanted)
            best = next((block for block in blocks if cells[block.layout] is not None), blocks[0])
            if cells[best.layout] is not None or _has_values(name, best.layout):
                places.append((step, best, cells[best.layout]))
        if not places:
            raise self._lookup.missing(name, self._lookup.layouts(mode), wanted)
        read = iter(self._blocks.numbers([(block, cell) for _, block, cell in places if cell is not None]))
        pairs = [
            (step, self._computed(name, statistic, block, rank) if cell is None else next(read))
            for step, block, cell in places
        ]
        kept = [(step, value) for step, value in pairs if value is not None]
        return np.array([step for step, _ in kept], np.int64), np.array([v for _, v in kept], np.float64)

    def values(
        self, name: str, *, mode: str | None = None, rank: int | None = None
    ) -> tuple[NDArray[np.int64], list[torch.Tensor]]:
        """A tensor at all steps that have it whole; steps whose bytes are lost are left out.

        Returns:
            Steps and tensors, of equal length.

        Raises:
            InputError: no step has it.
        """
        steps, found, having = [], [], False
        for step, blocks in self._lookup.having(name, mode, rank):
            if not any(_has_values(name, block.layout) for block in blocks):
                continue
            having = True
            try:
                found.append(self.value(name, blocks[0].step, rank=rank))
            except StateError:
                continue
            steps.append(step)
        if not having:
            raise self._lookup.missing(name, self._lookup.layouts(mode), "values")
        return np.array(steps, np.int64), found

    def wait_for(self, step: int, mode: str | None = None, timeout: float | None = None) -> bool:
        """Wait until a step, or a later one, can be read.

        Args:
            step: counted over all modes, or in ``mode``.
            timeout: seconds.

        Returns:
            False when the run ended, or the time was over, without it.
        """
        start = time.monotonic()
        while True:
            ended = self.ended  # asked before reading: what came before the end is there then
            self._index.refresh(now=ended)
            if max(self._lookup.by_step(mode), default=-1) >= step:
                return True
            if ended or (timeout is not None and time.monotonic() - start >= timeout):
                return False
            time.sleep(WAIT)

    def findings(self) -> list[Finding]:
        """What was found while the run went on, by rank and in order; what was found again, once."""
        records, _ = read(self._run.path, "debug", "findings")
        found = [Finding.of(record) for record in records]
        return list({(each.rule, each.tensors): each for each in reversed(found)}.values())[::-1]

    def judge(self, rules: Rules = True, *, rank: int | None = None) -> list[Finding]:
        """What rules find in the saved steps: the same as while the run went on, if it was not resumed.

        Args:
            rules: names of rules, or thresholds by name (see `RULES`); default: all.
            rank: whose steps; default: the lowest one that has them.

        Raises:
            InputError: an unknown rule or threshold.
            StateError: bytes of a step are not there, or a rule failed.
        """
        judge, found = SavedStepRules(select(rules, "saved step")), []
        for step in self.steps():
            block = self._lookup.at(step, None, rank)[0]
            found += judge.apply(block, block.layout, functools.partial(self._blocks.read, block))
            if judge.failures:
                raise StateError(
                    judge.failures[0],
                    "steps that rules can read",
                    "an error in the rule, or tensors that it does not expect",
                    "leave the rule out, and report it",
                )
        return found

    def verify(self) -> list[Fault]:
        """Read every block and compare its CRC-32; the damaged ones, by step and rank."""
        self.refresh()
        found = []
        for step in self._lookup.steps(None):
            for rank, block in sorted(self._index.blocks[step].items()):
                what = self._blocks.fault(block)
                if what is not None:
                    found.append(Fault(step, rank, what))
        return found

    def __repr__(self) -> str:
        return f"SavedRun({self.path!r})"

    def __str__(self) -> str:
        """State, steps by mode, tensors by collection, bytes and events."""
        from .summary import summary

        return summary(self, *self._blocks.size())

    def _form(
        self, name: str, step: int, mode: str | None, rank: int | None
    ) -> tuple[torch.dtype, tuple[int, ...]]:
        blocks = self._lookup.at(step, mode, rank)
        for block in blocks:
            entry = block.layout.tensor(name)
            if entry is not None:
                sharded = rank is None and entry.start is not None
                return entry.dtype, entry.whole if sharded else entry.shape
        for block in blocks:
            if (found := block.layout.described(name)) is not None:
                return found
        raise self._lookup.missing(name, [block.layout for block in blocks], "dtype and shape")

    def _computed(self, name: str, statistic: str | None, block: Block, rank: int | None) -> float | None:
        """A number of a series that is in no table; ``None`` where the bytes are lost."""
        try:
            if statistic is not None:
                return self.statistic(name, statistic, block.step, rank=rank)
            value = self.value(name, block.step, rank=rank)
        except StateError:
            return None
        if value.numel() != 1:
            raise InputError(
                f"series({name!r}) of a tensor {tuple(value.shape)}",
                "a scalar, or a statistic",
                "a tensor is no number",
                f"series({name!r}, 'mean'), or values({name!r})",
            )
        return float(value)


def open_run(run: str | os.PathLike[str] | Run) -> SavedRun:
    """Open a run for reading, while its training goes on or after it.

    Args:
        run: folder or fsspec URL of a run, or a ``Run``.  A run that saved nothing yet is an empty ``SavedRun``.

    Returns:
        The run's reader.

    Raises:
        InputError: there is no run, or a newer Loopwise wrote it.
    """
    return SavedRun(Run.existing(run.path if isinstance(run, Run) else run))


def _has_values(name: str, layout: Layout) -> bool:
    return name in layout.tensors or "value" in layout.statistic_offsets(name)
