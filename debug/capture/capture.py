"""Capture of a step's tensors during the step, up to the hand-over to the writer."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise.errors import StateError

from ..hooks import optimizers as updates
from ..hooks.guards import Guarded, is_capturing
from ..hooks.scripting import hooks_off_while_scripting
from ..model import names
from ..model.vocabulary import SCALARS, Save, due, place
from ..profiler.loaders import EpochLengths
from ..signals.samples import Samples
from ..statistics.precision import full_precision
from ..store.host_buffer import HostBuffer
from . import missing
from .budget import Budget
from .clock import Clock
from .collection import SAVED, Collection
from .health import Health
from .lease import StagingBuffer
from .modules import Observer, Observers
from .parameters import Groups
from .scalars import ScalarSteps, UpdateScalars
from .step import PendingStep
from .writer import Writer

UNLIMITED = 10
"""Last step that the default schedule saves whatever the first steps cost: rules need some to begin with."""
FULL = 100
"""Smallest number of samples in a tensor that a script passes each time, for it to be all of the data."""
FAILURES = 3
"""Number of steps in which a collection fails before it is switched off: one odd call must not cost the rest of a run."""


@dataclass(frozen=True)
class CaptureOptions:
    """Validated arguments of a ``Watch`` that select the saved tensors."""

    models: Mapping[str, nn.Module]
    optimizers: MutableMapping[str, Optimizer]
    """Only those that the script still has; one that takes the place of another one is added during training."""
    collections: list[Collection]
    save: Save
    scaler: Any
    on_backlog: str
    gather: bool
    strict: bool
    every_scalar: bool
    """Save losses and metrics at every step, whose collections have no schedule of their own."""


class Capture(updates.UpdateSubscriber):
    """Capture of one rank's tensors.

    Args:
        options: what to save.
        active: whether this rank takes part; otherwise there are no hooks.
        writer: writer of complete steps; ``None``: this rank writes nothing.
        clock: the step's number and mode.
        budget: limit of the time to spend.
        counts: counter of saved, reduced, dropped, thinned and failed steps.
        say: function that is called with a message for the user.
    """

    def __init__(
        self,
        options: CaptureOptions,
        active: bool,
        writer: Writer | None,
        clock: Clock,
        budget: Budget,
        counts: Counter[str],
        say: Callable[[str], None],
    ) -> None:
        self._options, self._active, self._clock, self._budget = options, active, clock, budget
        self._counts, self._say = counts, say
        self._collections = list(options.collections)
        self._scalars_of: list[Collection] | None = None
        self._scalar_owners: list[Collection] = []
        self._saved = Collection(SAVED, include=".")
        health = next((c for c in self._collections if c.name == "health"), None)
        self._health = Health(options.models, options.optimizers, health, lambda e: self._fail(health, e))
        self._step: PendingStep | None = None
        self._late: list[Collection] = []
        self._updated: set[int] = set()
        self._missing = missing.MissingTensors(self._collections)
        self._error: StateError | None = None
        self._failures: dict[Collection, set[int]] = {}
        self._scale, self._thinned = 0.0, False
        self._memory: dict[Any, Any] = {}
        self._scratch = HostBuffer()
        self._members: tuple[int, ...] = ()
        self._groups = Groups()
        self._device = names.device(options.models)
        self._has_autocast = torch.amp.is_autocast_available(self._device.type)
        self._guards = [self._new_guard([]), self._new_guard([budget.saving()])]
        """Contexts of steps that are not saved, and of those that are."""
        self._buffer = StagingBuffer(writer, options.on_backlog, counts, say)
        self._observers = Observers(self._receive)
        self._scalars = ScalarSteps(writer, self._fail)
        follows = options.every_scalar and active
        self._parameters = {key: updates.parameters(each) for key, each in options.optimizers.items()}
        """Parameters of each optimizer, also of those that the script has freed since."""
        self._at_updates = UpdateScalars(options.optimizers if follows else {})
        judged = any(collection.name == "health" for collection in options.collections)
        self._samples = Samples(options.models if follows or (judged and active) else {})
        self._epochs = EpochLengths()
        self._cleanup = contextlib.ExitStack()
        self._cleanup.enter_context(hooks_off_while_scripting())
        if active:
            for optimizer in options.optimizers.values():
                updates.subscribe(optimizer, self)
            self._refresh()
            if self._observers:
                from . import dynamo  # importing Dynamo takes seconds

                self._cleanup.enter_context(dynamo.hooks_in_graphs(options.models.values()))

    # -- calls of the Watch ---------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a step."""
        with self._guarded():
            self._health.rates.begin()
            self._open()

    def finish(self, scalars: Mapping[str, float | torch.Tensor]) -> None:
        """Finish the step: compute its statistics and hand it to the writer."""
        with self._guarded():
            self._finish(scalars)

    def save(self, name: str, value: torch.Tensor | float, collection: str | None) -> None:
        """Save a tensor that the user named, if the present step is saved."""
        if self._step is None:
            return
        with self._guarded():
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value)
            selected = [c for c in self._step.collections if c.name == collection]
            if collection is None:
                selected = [c for c in self._step.collections if c.wants("custom", name)]
            if collection is None or selected:
                self._step.put("custom", (self._free_name(name),), [tensor], selected or [self._saved])

    def _free_name(self, name: str) -> str:
        """Return a name for a tensor of the user's: its own, unless a parameter or another tensor of the step has it."""
        assert self._step is not None
        if self._groups.has(name):
            self._say(f"tensors of the names of parameters are saved under 'saved/': {name!r}")
            name = f"saved/{name}"
        call = self._step.calls[name]
        self._step.calls[name] += 1
        return f"{name}#{call}" if call else name

    @property
    def saves(self) -> bool:
        """True if the present step is saved."""
        return self._step is not None

    def hand_over(self) -> None:
        """Hand the scalars of the steps so far to the writer."""
        with self._guarded():
            self._scalars.hand_over()

    def lose(self) -> None:
        """Discard the step that an interrupt ended; its buffers may be half filled."""
        self._buffer.lose()
        self._step, self._observers.open, self._scratch = None, False, HostBuffer()

    def drop(self) -> None:
        """Discard the step that was begun."""
        self._step, self._observers.open = None, False
        self._health.rest()
        self._scratch.clear()
        self._buffer.give_back()

    def raise_missing(self) -> None:
        """Raise the error about missing tensors, if ``strict`` made one."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Discard the open step and remove every hook; call it again if an interrupt ended the first call."""
        self.drop()
        self._scalars.hand_over()
        self._samples.close()
        self._observers.remove()
        self._health.close()
        updates.unsubscribe_all(self)
        self._cleanup.close()

    # -- a step ---------------------------------------------------------------------------------

    def _open(self) -> None:
        """Begin to save the step if a collection is due."""
        self._updated.clear()
        mode, number = self._clock.mode, self._clock.mode_step
        by_default = due(self._options.save, mode, number)
        collections = [c for c in self._collections if (due(c.save, mode, number) if c.save else by_default)]
        late = [c for c in self._late if c not in collections] if mode == "train" else []
        self._step = None
        self._health.rest()
        if not self._active or (not collections and not late):
            self._observers.begin(False)
            return
        always = self._options.every_scalar and number <= UNLIMITED
        self._thinned = not always and bool(excess := self._budget.excess())
        if self._thinned:
            if not self._options.every_scalar:
                self._say(excess)
            collections, late = [c for c in collections if c.name in SCALARS], []
        collections = collections or self._scalar_collections()
        self._step = PendingStep(
            {"step": self._clock.step, "mode": mode, "mode_step": number, "time": 0.0, "marks": {}},
            collections,
            late,
            self._buffer.take,
            self._fail,
            self._memory,
            self._scratch,
            self._options.on_backlog == "reduce",
        )
        self._refresh()
        self._observers.begin(bool(collections))
        self._health.begin(self._step)
        self._buffer.begin(self._step)
        if self._options.scaler is not None:
            self._scale = self._options.scaler.get_scale()

    def _finish(self, scalars: Mapping[str, float | torch.Tensor]) -> None:
        step, self._observers.open = self._step, False
        self._observers.steps += self._clock.mode == "train"
        scalars = {**self._at_updates.take(), **scalars}
        samples = self._samples.take()
        whole = self._epochs.is_one_batch or (self._samples.is_kept and (samples or 0) >= FULL)
        if step is None:
            if self._options.every_scalar and self._active:
                self._finish_scalars(scalars, samples)
            return
        if samples is not None:
            step.record["marks"] |= {"samples": samples} | ({"full_batch": True} if whole else {})
        if scalars:
            step.add_scalars(scalars)
        if self._clock.mode != "train" or not self._parameters:
            self._groups.save(step, None, self._clock.mode == "train", self._options.gather)
        step.compute_statistics()
        self._scratch.clear()
        self._health.finish(step, self._clock.mode, scalars)
        self._note_late_collections(step)
        self._look_for_missing(step)
        self._step = None
        if not self._buffer.is_taken:
            return
        self._counts["saved"] += 1
        self._counts["thinned"] += self._thinned
        self._scalars.hand_over()
        self._buffer.submit(step, names.devices(self._options.models))

    def _scalar_collections(self) -> list[Collection]:
        """Return the collections of which every step is saved."""
        if self._scalars_of is not self._collections:
            self._scalars_of = self._collections
            owners = [c for c in self._collections if c.name in SCALARS and c.save is None]
            self._scalar_owners = owners if self._options.every_scalar else []
        return self._scalar_owners

    def _finish_scalars(self, scalars: Mapping[str, float | torch.Tensor], samples: int | None) -> None:
        """Keep the losses and metrics of a step of which nothing else is saved."""
        collections = self._scalar_collections()
        marks = {} if samples is None else {"samples": samples}
        mode, number = self._clock.mode, self._clock.mode_step
        record = {"step": self._clock.step, "mode": mode, "mode_step": number, "time": 0.0, "marks": marks}
        self._scalars.add(record, collections, scalars)

    def _note_late_collections(self, step: PendingStep) -> None:
        """Save weights and gradients at the next update if no optimizer updated in this step."""
        if self._clock.mode != "train" or not self._parameters:
            return
        self._late = []
        if self._options.scaler is not None and self._options.scaler.get_scale() < self._scale:
            step.record["marks"]["skipped"] = ["optimizer"]
        if not self._updated:
            self._late = [c for c in step.all if self._groups.interest(c)]

    def _look_for_missing(self, step: PendingStep) -> None:
        if self._clock.mode != "train":
            return
        trained = bool(self._updated or not self._parameters)
        collections = [c for c in step.all if c in self._collections]
        for text in self._missing.inspect(collections, step.seen, self._observers, self._groups, trained):
            self._say(text)
            if self._options.strict:
                self._error = missing.error(text)

    def _refresh(self) -> None:
        """Follow the modules and parameters if some came or went."""
        members = names.identities(self._options.models)
        if members != self._members:
            self._members = members
            self._groups.rename(names.parameters(self._options.models))
            self._observers.refresh(names.modules(self._options.models), self._collections)

    # -- tensors that come ----------------------------------------------------------------------

    def _receive(self, observer: Observer, side: str, name: str, tensor: torch.Tensor) -> None:
        """Save an input or output of a module."""
        step = self._step
        if step is None:
            return
        with self._guarded():
            call = step.calls[name]
            step.calls[name] += 1
            name = names.of_call(observer.prefix, name, call)
            kind = observer.output if side == "output" else side
            step.put(kind, (name,), [tensor])
            if observer.owners and side == "output":
                step.put(kind, (name,), [tensor], [c for c in observer.owners if c in step.collections])

    def joined(self, optimizer: Optimizer) -> None:
        """Take over an optimizer that updates parameters of a known one, in whose place it comes if it has all of them."""
        with self._guarded():
            own = updates.parameters(optimizer)
            replaced = [key for key, parameters in self._parameters.items() if parameters <= own]
            key = replaced[0] if replaced else f"optimizer {len(self._parameters) + 1}"
            self._parameters[key] = own
            self._options.optimizers[key] = optimizer
            self._at_updates.joined(key, optimizer)
            self._health.joined(optimizer, bool(replaced))
            kind = type(optimizer).__name__
            self._say(f"another optimizer updates the model and is followed from here on: {kind}")

    def before_update(self, optimizer: Optimizer) -> None:
        """Save gradients, weights and optimizer state before the step's first update changes them."""
        step = self._step
        if self._clock.mode == "train" and self._options.every_scalar and not is_capturing():
            with self._guarded():
                self._at_updates.update(optimizer)
        if step is None or self._clock.mode != "train" or id(optimizer) in self._updated:
            return
        self._updated.add(id(optimizer))
        with self._guarded():
            self._health.at_update(step, optimizer)
            self._groups.save(step, optimizer, True, self._options.gather)
            step.compute_statistics()

    # -- isolation ------------------------------------------------------------------------------

    def _guarded(self) -> Guarded:
        """Return a context that counts the time, switches autograd off, and lets no error reach the training loop."""
        if self._has_autocast and torch.is_autocast_enabled(self._device.type):
            saving = [] if self._step is None else [self._budget.saving()]
            return self._new_guard([*saving, full_precision(self._device)])
        return self._guards[self._step is not None]

    def _new_guard(self, contexts: list[Any]) -> Guarded:
        return Guarded(lambda error: self._fail(None, error), self.lose, self._budget.stopwatch, contexts)

    def _fail(self, collection: Collection | None, error: Exception) -> None:
        """Report an error and its place once; leave the collection out of the step, or discard the step.

        A collection that failed in `FAILURES` steps is switched off.
        """
        self._counts["failed"] += 1
        if collection is None:
            self.drop()
            self._say(f"a step could not be saved: {error!r}{place(error)}")
            return
        failed_steps = self._failures.setdefault(collection, set())
        failed_steps.add(self._clock.step)
        if self._step is not None:
            self._step.leave_out(collection)
        self._say(f"the collection {collection.name!r} failed in a step: {error!r}{place(error)}")
        if len(failed_steps) >= FAILURES:
            self._collections = [c for c in self._collections if c is not collection]
            self._late = [c for c in self._late if c is not collection]
            self._say(f"the collection {collection.name!r} is switched off: it failed in {FAILURES} steps")
