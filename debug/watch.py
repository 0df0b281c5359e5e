"""Watch a training run: save scalars and tensors of chosen steps without hurting it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise.errors import StateError
from loopwise.model import is_sharded
from loopwise.ranks import is_main, world_size
from loopwise.run import Run
from loopwise.schedule import every

from . import door, missing, names
from .budget import Budget
from .clock import Clock
from .collection import Collection, Save, collection_of, due
from .companions import Companion, Companions
from .health import Health
from .judge import Judge, Rules
from .loan import Loan
from .notices import place
from .precision import full_precision
from .reports import Reports
from .rules import Finding
from .saving import Saving
from .snapshot import Snapshot
from .taps import Tap, Taps
from .trap import Trap
from .updates import Groups, Updates
from .writer import Writer


class Watch:
    """Saves what training does into a run folder; ``Trial`` reads it, also while training goes on.

    Call ``step`` once at the end of each training step.  A step is saved where a collection's schedule says
    so: its scalars, and the tensors that came between this call and the one before.  Weights and
    gradients are those right before the optimizer's update, as the update uses them: averaged by
    DDP, reduced by FSDP2, summed over accumulated batches, unscaled.  Where a scheduled step has no update
    (accumulation, a step that GradScaler skips) they are those of the next update.

    Training is the same to the bit with and without it.  A failure in here is reported once, switches
    the collection off that it happened in, and lets training go on.

    Args:
        model: the model in training, in any wrapper, or several by name.
        optimizer: its optimizer, or several by name; without one, weights and gradients are taken when
            ``step`` is called.
        run: folder or fsspec URL of a new run, or a ``Run``, which the caller closes.
        save: when; a ``Schedule`` of steps, or one by mode.
        collections: names of built-in collections, and ``Collection`` objects.
        rules: names of rules that look at each saved step, or thresholds by name (see `RULES`); default: all
            where ``health`` is saved, none otherwise; ``()`` for none.
        on_finding: called with each `Finding`, by ``step`` on the training thread, once it is known; default: it is
            logged, under ``loopwise.debug``.
        scaler: the ``torch.amp.GradScaler``, so that steps which it skips are marked.
        policy: when storage is slower than training: ``block`` waits, ``drop`` leaves raw tensors of the
            step out, ``reduce`` saves statistics of them; what is left out is counted.
        max_overhead: share of the training time that may be spent in here on the training thread; where it
            is more, fewer steps are saved, which is said once and counted.  ``None``: no limit.
        gather: put shards of FSDP2 together and save whole tensors on rank 0 (a collective of all
            ranks at each saved step); otherwise each rank saves its own.
        trap: look at each step's gradients and losses; where they are not finite, find out by a replay of the step
            where that began, and write its batch into ``debug/blackbox``.
        strict: raise where something to be saved never came by the end of the first saved step;
            otherwise warn.

    Raises:
        InputError: arguments that cannot be used.
        StateError: the folder already holds a run.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: Optimizer | Mapping[str, Optimizer] | None = None,
        *,
        run: str | Run,
        save: Save | None = None,
        collections: Iterable[str | Collection] = ("losses", "metrics", "health"),
        rules: Rules | None = None,
        on_finding: Callable[[Finding], None] | None = None,
        scaler: Any = None,
        policy: str = "block",
        max_overhead: float | None = None,
        gather: bool = False,
        trap: bool = True,
        strict: bool = False,
    ) -> None:
        self._models = names.by_key(model, nn.Module, "model")
        self._optimizers = {} if optimizer is None else names.by_key(optimizer, Optimizer, "optimizer")
        self._collections = door.collections([collection_of(c) for c in collections])
        sharded = any(is_sharded(m) for m in self._models.values())
        door.options(save, policy, max_overhead, sharded and world_size() > 1)
        health = next((c for c in self._collections if c.name == "health"), None)
        self._health = Health(self._models, self._optimizers, health, lambda error: self._fail(health, error))
        judge = Judge(rules) if rules is not None or health is not None else None
        self._save: Save = every(500) if save is None else save
        self._scaler, self._policy, self._budget = scaler, policy, Budget(max_overhead)
        self._gather, self._strict = gather and sharded, strict
        self._own = not isinstance(run, Run)
        self.run = run if isinstance(run, Run) else Run(str(run))
        writes = is_main() or (sharded and not gather)
        self._active = writes or self._gather
        self._clock = Clock()
        self._saving: Saving | None = None
        self._late: list[Collection] = []
        self._updated: set[int] = set()
        self._check = missing.Check(self._collections)
        self._missing: StateError | None = None
        self.counts: Counter[str] = Counter()
        """Steps ``saved``, ``dropped`` or ``reduced`` by the policy, ``thinned`` by the budget, ``failed``."""
        self._scale, self._thinned = 0.0, False
        self._memory: dict[Any, Any] = {}
        self._scratch = Snapshot()
        self._members: tuple[int, ...] = ()
        self._groups = Groups()
        self._device = names.device(self._models)
        self._writer = Writer(self.run, self._device.type == "cuda", policy, judge) if writes else None
        self._reports = Reports(self.run, self._writer, self._clock, self.counts, on_finding)
        self._loan = Loan(self._writer, policy, self.counts, self._reports.say)
        self._taps = Taps(self._receive)
        self._updates = Updates(
            self._optimizers.values() if self._active else (), self._wants, self._before_update
        )
        self._cleanup = contextlib.ExitStack()
        self._closed = False
        self._companions = Companions(self._companions_wanted(trap), self._reports.say)
        if self._active:
            self._refresh()
            if self._taps:
                from . import compiled  # it imports Dynamo, which takes seconds

                self._cleanup.enter_context(compiled.seen(self._models.values()))
            self._open()
        self._companions.begin(0, "train")

    def _companions_wanted(self, trap: bool) -> Iterator[Companion]:
        if trap:
            yield Trap(self._models, self._optimizers, self.run, self._scaler, lambda: self._reports.findings)

    # -- the user's calls -----------------------------------------------------------------------

    def step(self, /, **scalars: float | torch.Tensor) -> None:
        """End the present step, with its losses and metrics by name: numbers, or tensors (their mean).

        A name that has ``loss`` in it belongs to the collection ``losses``, any other one to ``metrics``.
        """
        if self._closed:
            return
        with self._guarded():
            self._finish(scalars)
        with self._budget.counted(), torch.no_grad():
            self._companions.end(self._clock.step, self._clock.mode, scalars)
        self._clock.tick()
        self._begin()
        self._reports.collect(self._companions)
        self._reports.tell()
        if self._missing is not None:
            error, self._missing = self._missing, None
            raise error

    @contextlib.contextmanager
    def mode(self, mode: str) -> Iterator[None]:
        """Steps inside are counted and scheduled as ``train``, ``eval`` or ``predict``."""
        door.mode(mode)
        before = self._clock.mode
        self._turn(mode)
        try:
            yield
        finally:
            self._turn(before)

    def save(self, name: str, value: torch.Tensor | float, collection: str | None = None) -> None:
        """Save a tensor of the user's in the present step.

        Args:
            name: what to call it.
            value: tensor or number.
            collection: the collection that it belongs to; default: those whose ``include`` or ``where`` fits the name.
        """
        if self._saving is None:
            return
        only = None if collection is None else [c for c in self._saving.collections if c.name == collection]
        with self._guarded():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            self._saving.put("custom", (name,), [tensor], only)

    @property
    def saves(self) -> bool:
        """Whether the present step is saved: to prepare what ``save`` gets only then."""
        return self._saving is not None

    @property
    def findings(self) -> list[Finding]:
        """What the rules found so far, in order."""
        return self._reports.findings

    def state_dict(self) -> dict[str, Any]:
        """The step counters, for a checkpoint."""
        return self._clock.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where a checkpoint's run was."""
        self._drop()
        self._clock.load_state_dict(state)
        if not self._closed:
            self._begin()

    def close(self, state: str = "finished") -> None:
        """Write what is pending, take every hook off, and end the run where ``run`` was a path.

        Args:
            state: how the run ended, ``finished`` or ``failed``.
        """
        if self._closed:
            return
        self._closed = True
        self._drop()
        self._taps.remove()
        self._updates.remove()
        self._health.close()
        self._cleanup.close()
        self._companions.close()
        self._reports.collect(self._companions)
        if self._writer is not None:
            self._writer.close()
        if self._own:
            self._reports.attempt("the end of the run could not be written", lambda: self.run.close(state))
        self._reports.tell()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("finished" if kind is None else "failed")

    # -- a step ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        with self._guarded():
            self._open()
        with self._budget.counted(), torch.no_grad():
            self._companions.begin(self._clock.step, self._clock.mode)

    def _open(self) -> None:
        """Begin a step: what of it is to be saved?"""
        self._updated.clear()
        mode, step = self._clock.mode, self._clock.mode_step
        wanted = [c for c in self._collections if due(c.save or self._save, mode, step)]
        late = [c for c in self._late if c not in wanted] if mode == "train" else []
        self._saving, self._taps.open = None, False
        if not self._active or (not wanted and not late):
            return
        self._thinned = bool(excess := self._budget.excess())
        if self._thinned:
            self._reports.say(excess)
            wanted, late = [c for c in wanted if c.name in ("losses", "metrics")], []
        record = {"step": self._clock.step, "mode": mode, "mode_step": step, "time": 0.0, "marks": {}}
        reduces = self._policy == "reduce"
        self._saving = Saving(
            record, wanted, late, self._loan.take, self._fail, self._memory, self._scratch, reduces
        )
        self._refresh()
        self._taps.open = bool(wanted)
        self._health.begin()
        self._loan.begin(self._saving)
        if self._scaler is not None:
            self._scale = self._scaler.get_scale()

    def _finish(self, scalars: Mapping[str, float | torch.Tensor]) -> None:
        saving, self._taps.open = self._saving, False
        if saving is None:
            return
        if scalars:
            saving.add_scalars(scalars)
        if self._clock.mode != "train" or not self._optimizers:
            self._groups.hand_on(saving, None, self._clock.mode == "train", self._gather)
        saving.make_tables()
        self._scratch.clear()
        self._health.finish(saving, self._clock.mode, scalars)
        self._look_for_updates(saving)
        self._check_for_missing(saving)
        self._saving = None
        if not self._loan.taken:
            return
        saving.record["time"] = time.time()
        if self._device.type == "cuda":
            saving.ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            saving.ready.record(torch.cuda.current_stream(self._device))
        self.counts["saved"] += 1
        self.counts["thinned"] += self._thinned
        self._loan.submit(saving)

    def _look_for_updates(self, saving: Saving) -> None:
        """Where no optimizer updated, weights and gradients come with the next update."""
        if self._clock.mode != "train" or not self._optimizers:
            return
        self._late = []
        if self._scaler is not None and self._scaler.get_scale() < self._scale:
            saving.record["marks"]["skipped"] = ["optimizer"]
        if not self._updated:
            self._late = [c for c in saving.all if self._groups.interest(c)]

    def _check_for_missing(self, saving: Saving) -> None:
        if self._clock.mode != "train":
            return
        trained = bool(self._updated or not self._optimizers)
        complete = [c for c in saving.all if c in self._collections]
        for text in self._check(complete, saving.seen, self._taps, self._groups, trained):
            self._reports.say(text)
            if self._strict:
                self._missing = missing.error(text)

    def _turn(self, mode: str) -> None:
        if mode != self._clock.mode and not self._closed:
            self._drop()
            self._clock.mode = mode
            self._begin()

    def _drop(self) -> None:
        """Forget the step that was begun."""
        self._saving, self._taps.open = None, False
        self._scratch.clear()
        self._loan.give_back()

    def _refresh(self) -> None:
        """Modules and parameters may have come and gone."""
        found = names.identities(self._models)
        if found != self._members:
            self._members = found
            self._groups.name(names.parameters(self._models))
            self._taps.fit(names.modules(self._models), self._collections)

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

    def _wants(self) -> bool:
        saving = self._saving
        return saving is not None and self._clock.mode == "train"

    def _before_update(self, optimizer: Optimizer) -> None:
        if id(optimizer) in self._updated:
            return
        self._updated.add(id(optimizer))
        with self._guarded():
            saving = self._saving
            assert saving is not None
            self._health.at_update(saving, optimizer)
            self._groups.hand_on(saving, optimizer, True, self._gather)
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
        self.counts["failed"] += 1
        if collection is None:
            self._drop()
            self._reports.say(f"a step could not be saved: {error!r}{place(error)}")
            return
        self._collections = [c for c in self._collections if c is not collection]
        self._late = [c for c in self._late if c is not collection]
        if self._saving is not None:
            self._saving.leave_out(collection)
        self._reports.say(f"the collection {collection.name!r} is switched off: {error!r}{place(error)}")
