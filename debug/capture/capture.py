"""Takes what a step saves, as it comes, and hands it to the writer."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise.errors import StateError

from ..hooks import optimizers as updates
from ..model import names
from ..model.vocabulary import Save, due, place
from ..reporting import Reports
from ..statistics.precision import full_precision
from ..store.host_buffer import Snapshot
from . import missing
from .budget import Budget
from .clock import Clock
from .collection import Collection
from .health import Health
from .lease import Loan
from .modules import Tap, Taps
from .parameters import Groups
from .step import Saving
from .writer import Writer


@dataclass(frozen=True)
class Wanted:
    """What a ``Watch`` was asked to save; see there."""

    models: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    collections: list[Collection]
    save: Save
    scaler: Any
    policy: str
    gather: bool
    strict: bool


class Capture(updates.UpdateSubscriber):
    """One rank's side of it.

    Args:
        wanted: what is to be saved.
        active: whether this rank takes part; otherwise nothing is looked at.
        writer: ``None``: this rank writes nothing.
        clock, budget, counts, reports: of the ``Watch``.
    """

    def __init__(
        self,
        wanted: Wanted,
        active: bool,
        writer: Writer | None,
        clock: Clock,
        budget: Budget,
        counts: Counter[str],
        reports: Reports,
    ) -> None:
        self._wanted, self._active, self._clock, self._budget = wanted, active, clock, budget
        self._counts, self._reports = counts, reports
        self._collections = list(wanted.collections)
        health = next((c for c in self._collections if c.name == "health"), None)
        self._health = Health(wanted.models, wanted.optimizers, health, lambda e: self._fail(health, e))
        self._saving: Saving | None = None
        self._late: list[Collection] = []
        self._updated: set[int] = set()
        self._check = missing.Check(self._collections)
        self._missing: StateError | None = None
        self._scale, self._thinned = 0.0, False
        self._memory: dict[Any, Any] = {}
        self._scratch = Snapshot()
        self._members: tuple[int, ...] = ()
        self._groups = Groups()
        self._device = names.device(wanted.models)
        self._loan = Loan(writer, wanted.policy, counts, reports.say)
        self._taps = Taps(self._receive)
        self._cleanup = contextlib.ExitStack()
        if active:
            for optimizer in wanted.optimizers.values():
                updates.subscribe(optimizer, self)
                self._cleanup.callback(updates.unsubscribe, optimizer, self)
            self._refresh()
            if self._taps:
                from . import dynamo as compiled  # it imports Dynamo, which takes seconds

                self._cleanup.enter_context(compiled.seen(wanted.models.values()))

    # -- the user's calls -----------------------------------------------------------------------

    def begin(self) -> None:
        """A step begins."""
        with self._guarded():
            self._health.rates.begin()
            self._open()

    def finish(self, scalars: Mapping[str, float | torch.Tensor]) -> None:
        """It ended."""
        with self._guarded():
            self._finish(scalars)

    def save(self, name: str, value: torch.Tensor | float, collection: str | None) -> None:
        """Save a tensor of the user's."""
        if self._saving is None:
            return
        only = None if collection is None else [c for c in self._saving.collections if c.name == collection]
        with self._guarded():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            self._saving.put("custom", (name,), [tensor], only)

    @property
    def saves(self) -> bool:
        """Whether the present step is saved."""
        return self._saving is not None

    def drop(self) -> None:
        """Forget the step that was begun."""
        self._saving, self._taps.open = None, False
        self._health.rest()
        self._scratch.clear()
        self._loan.give_back()

    def raise_missing(self) -> None:
        """Raise what was found missing, where that is an error."""
        if self._missing is not None:
            error, self._missing = self._missing, None
            raise error

    def close(self) -> None:
        """Take every hook off."""
        self.drop()
        self._taps.remove()
        self._health.close()
        self._cleanup.close()

    # -- a step ---------------------------------------------------------------------------------

    def _open(self) -> None:
        """Begin a step: what of it is to be saved?"""
        self._updated.clear()
        mode, step = self._clock.mode, self._clock.mode_step
        wanted = [c for c in self._collections if due(c.save or self._wanted.save, mode, step)]
        late = [c for c in self._late if c not in wanted] if mode == "train" else []
        self._saving, self._taps.open = None, False
        self._health.rest()
        if not self._active or (not wanted and not late):
            return
        self._thinned = bool(excess := self._budget.excess())
        if self._thinned:
            self._reports.say(excess)
            wanted, late = [c for c in wanted if c.name in ("losses", "metrics")], []
        record = {"step": self._clock.step, "mode": mode, "mode_step": step, "time": 0.0, "marks": {}}
        reduces = self._wanted.policy == "reduce"
        self._saving = Saving(
            record, wanted, late, self._loan.take, self._fail, self._memory, self._scratch, reduces
        )
        self._refresh()
        self._taps.open = bool(wanted)
        self._health.begin(self._saving)
        self._loan.begin(self._saving)
        if self._wanted.scaler is not None:
            self._scale = self._wanted.scaler.get_scale()

    def _finish(self, scalars: Mapping[str, float | torch.Tensor]) -> None:
        saving, self._taps.open = self._saving, False
        if saving is None:
            return
        if scalars:
            saving.add_scalars(scalars)
        if self._clock.mode != "train" or not self._wanted.optimizers:
            self._groups.hand_on(saving, None, self._clock.mode == "train", self._wanted.gather)
        saving.make_tables()
        self._scratch.clear()
        self._health.finish(saving, self._clock.mode, scalars)
        self._look_for_updates(saving)
        self._check_for_missing(saving)
        self._saving = None
        if not self._loan.taken:
            return
        self._counts["saved"] += 1
        self._counts["thinned"] += self._thinned
        self._loan.submit(saving, names.devices(self._wanted.models))

    def _look_for_updates(self, saving: Saving) -> None:
        """Where no optimizer updated, weights and gradients come with the next update."""
        if self._clock.mode != "train" or not self._wanted.optimizers:
            return
        self._late = []
        if self._wanted.scaler is not None and self._wanted.scaler.get_scale() < self._scale:
            saving.record["marks"]["skipped"] = ["optimizer"]
        if not self._updated:
            self._late = [c for c in saving.all if self._groups.interest(c)]

    def _check_for_missing(self, saving: Saving) -> None:
        if self._clock.mode != "train":
            return
        trained = bool(self._updated or not self._wanted.optimizers)
        complete = [c for c in saving.all if c in self._collections]
        for text in self._check(complete, saving.seen, self._taps, self._groups, trained):
            self._reports.say(text)
            if self._wanted.strict:
                self._missing = missing.error(text)

    def _refresh(self) -> None:
        """Modules and parameters may have come and gone."""
        found = names.identities(self._wanted.models)
        if found != self._members:
            self._members = found
            self._groups.name(names.parameters(self._wanted.models))
            self._taps.fit(names.modules(self._wanted.models), self._collections)

    # -- tensors that come ----------------------------------------------------------------------

    def _receive(self, tap: Tap, which: str, name: str, tensor: torch.Tensor) -> None:
        saving = self._saving
        if saving is None:
            return
        with self._guarded():
            call = saving.calls[name]
            saving.calls[name] += 1
            name = names.of_call(tap.prefix, name, call)
            kind = tap.output if which == "output" else which
            saving.put(kind, (name,), [tensor])
            if tap.owners and which == "output":
                saving.put(kind, (name,), [tensor], [c for c in tap.owners if c in saving.collections])

    def before_update(self, optimizer: Optimizer) -> None:
        """Take gradients, weights and optimizer state before the step's first update changes them."""
        saving = self._saving
        if saving is None or self._clock.mode != "train" or id(optimizer) in self._updated:
            return
        self._updated.add(id(optimizer))
        with self._guarded():
            self._health.at_update(saving, optimizer)
            self._groups.hand_on(saving, optimizer, True, self._wanted.gather)
            saving.make_tables()  # before the update changes them

    # -- stepping aside -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Time in here is counted, nothing is recorded for backward, and nothing that fails gets out."""
        try:
            with self._budget.counted(), torch.no_grad(), full_precision(self._device):
                yield
        except Exception as error:
            self._fail(None, error)

    def _fail(self, collection: Collection | None, error: Exception) -> None:
        """Something of ours went wrong: say where, once, and switch off what it happened in."""
        self._counts["failed"] += 1
        if collection is None:
            self.drop()
            self._reports.say(f"a step could not be saved: {error!r}{place(error)}")
            return
        self._collections = [c for c in self._collections if c is not collection]
        self._late = [c for c in self._late if c is not collection]
        if self._saving is not None:
            self._saving.leave_out(collection)
        self._reports.say(f"the collection {collection.name!r} is switched off: {error!r}{place(error)}")
