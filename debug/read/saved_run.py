"""Reader of a saved run, during training or after it."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from loopwise.errors import InputError, StateError
from loopwise.run import Run, read

from ..model.vocabulary import pattern
from ..rules import Finding
from ..rules.healthy_run import opened
from ..rules.saved_steps import SavedStepRules
from ..rules.thresholds import Rules, select
from ..store.blocks import Blocks
from ..store.index import Block, Index
from .query import Query, fix_of_errors, span, unique
from .tables import MOST, Table, tables
from .values import Series, TensorReader

WAIT = 0.1
"""Seconds between two attempts of ``wait_for`` to read a step."""
LATEST = 10
"""Number of events in the text of a run."""


class Fault(NamedTuple):
    """A block whose bytes are lost or damaged."""

    step: int
    rank: int
    what: str


class SavedRun(TensorReader):
    """Reader of the tensors and findings that a ``Watch`` saved, made by ``open_run``.

    Each method first reads the records that were written since the last call.  Use a reader in one thread only.

    Steps are counted over all modes, or within ``mode`` if it is passed.  If several ranks saved a tensor, methods return
    the lowest rank's tensor, and join shards; ``rank`` selects another rank.

    Args:
        run: a run that exists.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        folder = f"{run.path}/debug"
        self._index = Index(run.fs, folder, run.local)
        super().__init__(Query(self._index), Blocks(run.fs, folder, run.local))
        self.refresh()

    @property
    def path(self) -> str:
        """Folder of the run, or its URL if it is not local."""
        return self._run.url

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def info(self) -> dict[str, Any]:
        """Present contents of ``run.json``."""
        return self._run.info()

    @property
    def ended(self) -> bool:
        """True once the run has finished or failed, or its process is gone; see ``Run.state``."""
        return self._run.state() != "running"

    @property
    def modes(self) -> list[str]:
        """Modes with saved steps."""
        return [mode for mode, steps in self._read().modes.items() if steps]

    @property
    def ranks(self) -> list[int]:
        """Ranks that wrote records."""
        return self._read().ranks

    @property
    def events(self) -> list[dict[str, Any]]:
        """Messages, for instance about dropped tensors: dicts with ``event``, ``step`` and ``rank``."""
        return list(self._read().events)

    @property
    def torn(self) -> int:
        """Number of lost records and findings: cut off by the end of a process, damaged, or of a damaged layout."""
        return self._read().torn + self._findings()[1]

    def _read(self) -> Index:
        """Return the index after reading new records."""
        self._index.refresh()
        return self._index

    def refresh(self) -> None:
        """Read the records that were written since the last call.

        Other methods do the same; on remote storage they do so at most once a second.
        """
        self._index.refresh(now=True)

    def steps(self, mode: str | None = None) -> list[int]:
        """Return the saved steps in order.

        Raises:
            InputError: there is no such mode.
        """
        return list(self._query.steps(mode))

    def last_steps(self) -> dict[int, int]:
        """Return the last saved step of each rank, counted over all modes, by rank."""
        last: dict[int, int] = {}
        for step, ranks in self._read().blocks.items():
            last |= {rank: max(step, last.get(rank, -1)) for rank in ranks}
        return dict(sorted(last.items()))

    def collections(self) -> list[str]:
        """Return the collections in order of first appearance."""
        groups = [group for layout in self._query.layouts() for group in layout.groups]
        return unique([group["collection"]] for group in groups)

    def names(
        self,
        regex: str | None = None,
        *,
        collection: str | None = None,
        step: int | None = None,
        mode: str | None = None,
    ) -> list[str]:
        """Return the names of tensors, saved whole or as statistics, and of scalars, in order of first appearance.

        Args:
            regex: searched for in the names.
            collection: only names of this collection.
            step: only names saved at this step; default: at any.
            mode: only names saved in this mode.

        Raises:
            InputError: there is no such step or mode, or ``regex`` is no regular expression.
        """
        wanted = pattern(regex or "", f"regex={regex!r}")
        if step is None:
            self._query.by_step(mode)
            layouts = self._query.layouts(mode)
        else:
            layouts = [block.layout for block in self._query.blocks(step, mode, None)]
        names = unique(layout.names(collection) for layout in layouts)
        return [name for name in names if wanted.search(name)] if regex else names

    def has(self, name: str, step: int, *, mode: str | None = None, rank: int | None = None) -> bool:
        """Return whether a step has a tensor, its statistics, or a scalar."""
        try:
            return any(name in block.layout for block in self._query.blocks(step, mode, rank))
        except InputError:
            return False

    def record(self, step: int, *, mode: str | None = None, rank: int | None = None) -> dict[str, Any]:
        """Return ``step``, ``mode``, ``mode_step``, ``time`` (seconds since the epoch) and ``marks`` of a step.

        Raises:
            InputError: there is no such step.
        """
        block = self._query.blocks(step, mode, rank)[0]
        return {key: getattr(block, key) for key in ("step", "mode", "mode_step", "time", "marks")}

    def blocks(self, step: int) -> Mapping[int, Block]:
        """Return the record of each rank's block of a step by rank, with layout, length in bytes and CRC-32.

        Raises:
            InputError: there is no such step.
        """
        return {block.rank: block for block in self._query.blocks(step, None, None)}

    def series_by_mode(self, name: str, statistic: str | None = None) -> dict[str, Series]:
        """Return ``series`` for each mode that has values; steps are counted over all modes.

        Raises:
            InputError: no step has the scalar or statistic.
        """
        steps, values = self.series(name, statistic)
        modes = self._index.modes.items()
        of_mode = {mode: np.isin(steps, list(numbers.values())) for mode, numbers in modes}
        return {mode: (steps[here], values[here]) for mode, here in of_mode.items() if here.any()}

    def tables(
        self, kinds: Mapping[str, Sequence[str]], *, mode: str = "train", most: int = MOST
    ) -> dict[str, Table]:
        """Return saved statistics of all tensors of some kinds over steps; lost bytes leave NaN.

        Args:
            kinds: kind (``weight``, ``gradient``, ``update``, ``input`` or ``output``) -> statistics.
            mode: mode of the steps.
            most: largest number of steps that are read of each kind, evenly spread.

        Returns:
            A table for each kind.
        """
        ranks = self._read().blocks
        steps = sorted(self._index.modes.get(mode, {}).values())
        return tables({step: ranks[step][min(ranks[step])] for step in steps}, self._blocks, kinds, most)

    def wait_for(self, step: int, mode: str | None = None, timeout: float | None = None) -> bool:
        """Wait until a step, or a later one, can be read.

        Args:
            step: step counted over all modes, or within ``mode``.
            mode: mode of the step.
            timeout: seconds; default: wait until the run ends.

        Returns:
            True if the step can be read; false if the run ended, or the timeout passed, without it.

        Raises:
            InputError: there is no such mode.
        """
        start = time.monotonic()
        while True:
            ended = self.ended  # before the reading: steps that were written before the end are read then
            self._index.refresh(now=ended)
            if max(self._query.by_step(mode), default=-1) >= step:
                return True
            if ended or (timeout is not None and time.monotonic() - start >= timeout):
                return False
            time.sleep(WAIT)

    def findings(self) -> list[Finding]:
        """Return the findings recorded during training, by rank and in order, each rule and its tensors once."""
        findings, _ = self._findings()
        first = {(finding.rule, finding.tensors): finding for finding in reversed(findings)}
        return list(first.values())[::-1]

    def _findings(self) -> tuple[list[Finding], int]:
        """Return the findings recorded during training, and the number of lost ones."""
        return read(self.path, "debug", "findings", Finding.of)

    def judge(
        self,
        rules: Rules = True,
        *,
        rank: int | None = None,
        like: str | os.PathLike[str] | Run | None = None,
    ) -> list[Finding]:
        """Apply rules to the saved steps; without a resume the findings are the same as during training.

        Args:
            rules: ``True`` for all rules of saved steps, names of rules, or thresholds by name (see `RULES`).
            rank: rank whose steps are read; default: the lowest one that has a step.
            like: folder or URL of a healthy run that this one is compared with, by the rule `unlike_healthy_run`.

        Raises:
            InputError: there is no such rule, threshold or rank, or ``like`` is no run that can be compared.
            StateError: bytes of a step are lost, or a rule failed.
        """
        healthy = None if like is None else opened(like, self._run, rank or 0)
        applied, findings = SavedStepRules(select(rules, "saved step"), healthy), []
        for step in self.steps():
            block = self._query.blocks(step, None, rank)[0]
            with fix_of_errors("`loopwise debug verify` lists the damaged steps"):
                findings += applied.apply(block, block.layout, functools.partial(self._blocks.read, block))
            if applied.failures:
                raise StateError(
                    applied.failures[0],
                    "steps that rules can read",
                    "an error in the rule, or tensors that it does not expect",
                    "leave the rule out, and report it",
                )
        return findings

    def verify(self) -> list[Fault]:
        """Read every block, compare its CRC-32, and return the damaged ones by step and rank."""
        self.refresh()
        return [
            Fault(step, rank, what)
            for step in self._query.steps(None)
            for rank, block in sorted(self._index.blocks[step].items())
            if (what := self._blocks.fault(block)) is not None
        ]

    def __repr__(self) -> str:
        return f"SavedRun({self.path!r})"

    def __str__(self) -> str:
        """Describe state, steps by mode, tensors by collection, bytes and the latest events in a few lines."""
        files, size = self._blocks.size()
        steps = [f"{mode} {span(self.steps(mode))}" for mode in self.modes]
        tensors = [f"{name} {len(self.names(collection=name)):,}" for name in self.collections()]
        events = self.events
        lines = [
            f"run {self.path}: {self._run.state()}; ranks: {', '.join(map(str, self.ranks)) or 'none'}",
            f"steps: {'; '.join(steps) or 'none'}",
            f"tensors: {', '.join(tensors) or 'none'}",
            f"on disk: {size / 2**20:,.1f} MiB in {files} files",
            f"events: {len(events)}; lost records: {self.torn}",
        ]
        return "\n".join(
            lines + [f"  step {e.get('step')}, rank {e['rank']}: {e['event']}" for e in events[-LATEST:]]
        )


def open_run(run: str | os.PathLike[str] | Run) -> SavedRun:
    """Open a run for reading, while its training goes on or after it.

    Args:
        run: folder or fsspec URL of a run, or a ``Run``.  A run that saved nothing yet is an empty ``SavedRun``.

    Returns:
        The run's reader.

    Raises:
        InputError: there is no run, or a newer Loopwise wrote it.
    """
    return SavedRun(run if isinstance(run, Run) else Run.existing(run))
