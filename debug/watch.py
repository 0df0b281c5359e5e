"""Record a training run: scalars and tensors of some steps, findings of rules over them, and a profile."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise import validate
from loopwise.ranks import is_main, world_size
from loopwise.run import Run, as_run
from loopwise.wrappers import is_sharded

from . import options
from .alerts.notices import Tell
from .capture.budget import Budget
from .capture.capture import Capture
from .capture.clock import Clock
from .capture.collection import Collection
from .capture.writer import Writer
from .ending import Ending
from .hooks.guards import Quiet
from .interrupts import Delayed
from .loggers import Logger
from .loggers.delivery import Deliveries
from .model import names
from .model.vocabulary import MODES, Save, place
from .monitors.monitor import Monitors
from .monitors.ranks import RankMonitor
from .monitors.schedules import unfinished
from .monitors.stall import StallMonitor
from .nan import Trap
from .options import WatchOptions
from .profiler import Profile, Profiler
from .reporting import Reports
from .rules import Finding, at_least
from .rules.healthy_run import HealthyRun
from .rules.saved_steps import SavedStepRules
from .rules.thresholds import Rules, Selection, of_source
from .store.index import last_counters
from .torch_internals import set_grad_mode


class Watch:
    """Recorder of a training run.  ``open_run`` reads what it saves, also while training goes on.

    Call ``step`` once at the end of each training step.  A step is saved if a collection's schedule includes it: its
    scalars, and the tensors between this call and the one before.  Weights and gradients are those right before the
    optimizer's update, as the update uses them: averaged by DDP, reduced by FSDP2, summed over accumulated batches,
    unscaled.  If a scheduled step has no update (accumulation, a step that GradScaler skips), they are those of the
    next update.

    Training is the same to the bit with and without a ``Watch``.  If something fails in it, it warns once, switches
    off the collection at fault, and training goes on.

    Args:
        model: the model in training, in any wrapper, or several models by name.
        optimizer: optimizer of the model, also one that Accelerate has prepared, or several by name; without one,
            ``step`` saves weights and gradients.
        run: folder or fsspec URL of the run, or a ``Run``, which the caller closes.  If the folder holds a run already,
            the new one gets a folder of its own, ``runs/x-2`` beside ``runs/x``.
        resume: go on in a folder that already holds a run; only if ``run`` is a path.  Steps are counted on from the
            last saved one, or from where ``load_state_dict`` says.
        save: steps to save; a ``Schedule``, or one for each mode.  Default: losses, metrics, learning rates and the
            norm of the gradients at every step, and the other collections at 0, 1, 2, 5, 10, 20, 50, 100, at every
            100th step up to 1,000, and at every 500th from there on.
        collections: names of built-in collections, and ``Collection`` objects.
        rules: ``"auto"``: all rules if ``health`` is saved, else those of the trap and the profile; ``True``: all;
            ``False``: none; names of rules; or thresholds by name (see `RULES`).
        like: folder or URL of an earlier, healthy run; the rule `unlike_healthy_run` compares what both save of the same
            training steps, whatever ``rules`` selects.
        on_finding: function, or several, that ``step`` calls on the training thread with each new `Finding` (another
            thread calls them if training stalls); ``loopwise.debug.alerts.destinations`` has such functions; default:
            findings are logged under ``loopwise.debug``.
        loggers: where numbers and findings also go while training goes on: objects of ``loopwise.debug.loggers``, such
            as ``TensorBoardLogger``.  With several ranks, rank 0 logs.
        stop_on: ``warning`` or ``critical``: ``should_stop`` is true after a finding of this severity or worse.
        scaler: the ``torch.amp.GradScaler``, so that steps which it skips are marked.
        on_backlog: the reaction if storage is slower than training: ``block`` waits, ``drop`` leaves raw tensors of
            the step out, ``reduce`` saves statistics of them; ``counts`` has the number of such steps.
        max_overhead: largest share of the training time to spend on saving, on the training thread; beyond it fewer
            steps are saved, with one warning, and counted as ``thinned``; ``None``: no limit.  Default: 0.01 with the
            default schedule, after step 10 and half a second of saving, without a warning; otherwise no limit.
        gather: put shards of FSDP2 together and save whole tensors on rank 0 (a collective of all ranks at each
            saved step); otherwise each rank saves its own shards.
        trap: inspect each step's gradients and losses; if they are not finite, replay the step to find the operation
            with the first such value, and write the step's batch into ``debug/blackbox``.
        profile: sample the machine and time the phases of each step; pass a `Profile` for options.
        strict: raise an error if a collection selects a tensor that is missing at the end of the first saved step;
            otherwise warn.

    Attributes:
        run: the run.
        counts: numbers of steps: ``saved``, ``dropped`` or ``reduced`` by ``on_backlog``, ``thinned`` by
            ``max_overhead``, ``failed``, and ``unlogged`` by a logger that is slower than training.

    Raises:
        InputError: an argument cannot be used.
        StateError: the folder, a file or a thread cannot be had, or, with several ranks, the folder holds a run already.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: Optimizer | Mapping[str, Optimizer] | None = None,
        *,
        run: str | os.PathLike[str] | Run,
        resume: bool = False,
        save: Save | None = None,
        collections: Iterable[str | Collection] = ("losses", "metrics", "health"),
        rules: Rules = "auto",
        like: str | os.PathLike[str] | Run | None = None,
        on_finding: Tell | Sequence[Tell] | None = None,
        loggers: Iterable[Logger] = (),
        stop_on: str | None = None,
        scaler: Any = None,
        on_backlog: str = "block",
        max_overhead: float | str | None = "auto",
        gather: bool = False,
        trap: bool = True,
        profile: bool | Profile = True,
        strict: bool = False,
    ) -> None:
        models, optimizers = options.models(model), options.optimizers(optimizer)
        options.scaler(scaler)
        options.run(run, resume)
        self._options = WatchOptions(
            save=save,
            collections=collections,
            rules=rules,
            like=like,
            on_finding=on_finding,
            loggers=loggers,
            stop_on=stop_on,
            on_backlog=on_backlog,
            max_overhead=max_overhead,
            gather=gather,
            trap=trap,
            profile=profile,
            strict=strict,
        )
        sharded = any(is_sharded(m) for m in models.values())
        living = weakref.WeakValueDictionary(optimizers)  # a loop may make others, and free these
        self._what = self._options.for_capture(models, living, scaler, sharded)
        healthy = self._options.healthy_run(run)
        with Delayed():
            handle = as_run(run, "debug", resume)
            assert handle is not None
            self.run, self._ending = handle.run, Ending(handle)
            try:
                self._start(is_main() or (sharded and not gather), sharded, healthy)
            except BaseException as error:
                self._ending.cancel(error)
                raise
        self._finalizer = weakref.finalize(self, self._ending.dropped)
        self._finalizer.atexit = False

    def _start(self, writes: bool, sharded: bool, healthy: HealthyRun | None) -> None:
        """Start the threads and register the hooks.

        Args:
            writes: true if this rank saves steps.
            sharded: true if a model is in shards.
            healthy: the run that the training is compared with.
        """
        selected, on_backlog = self._options.selected_rules(), self._options.on_backlog
        rules = SavedStepRules(selected, healthy) if of_source(selected, "saved step") else None
        pinned = names.device(self._what.models).type == "cuda"
        self.counts: Counter[str] = Counter()
        loggers = Deliveries(self._options.loggers if is_main() else ())
        self._ending.loggers = loggers
        writer = Writer(self.run, pinned, on_backlog, rules, loggers) if writes else None
        self._writer = self._ending.writer = writer
        self._clock, self._budget = Clock(), Budget(*self._options.limit(sharded))
        self._quietly = Quiet(self._budget.stopwatch)
        if self.run.resumed:
            self._clock.load_state_dict(last_counters(self.run))
        told = self._options.on_finding
        self._reports = Reports(self.run, writer, self._clock, self.counts, told, loggers)
        self._ending.reports = self._reports
        shared = self._clock, self._budget, self.counts, self._reports.say
        self._capture = Capture(self._what, writes or self._what.gather, writer, *shared)
        self._ending.capture = self._capture
        self._monitors = self._ending.monitors = Monitors(self._reports.say)
        self._add_monitors(selected)
        self._begin()

    def _add_monitors(self, rules: Selection) -> None:
        """Make the monitors in the order in which they begin and end steps."""
        models, optimizers, add = self._what.models, self._what.optimizers, self._monitors.add
        # monitors hold no reference to this object
        reports, stopwatch = self._reports, self._budget.stopwatch
        if "stalled_training" in rules:
            seconds = rules["stalled_training"].get("seconds")
            add(StallMonitor(reports.at_once, seconds))
        ranks = of_source(rules, "ranks")
        if ranks and world_size() > 1:
            add(RankMonitor(models, self._what.save, ranks))
        if (schedules := of_source(rules, "schedules")) and is_main():
            clock, watched = self._clock, list(optimizers.values())
            self._ending.at_end = lambda: unfinished(watched, schedules, max(clock.step - 1, 0))
        if self._options.trap:
            scaler = self._what.scaler
            add(Trap(models, optimizers, self.run, scaler, lambda: reports.findings, stopwatch))
        if self._options.profile is not False:
            profile = self._options.profile if isinstance(self._options.profile, Profile) else Profile()
            of_profile = of_source(rules, "profile")
            try:
                add(Profiler(models, optimizers, self.run, profile, stopwatch.spent, of_profile))
            except Exception as error:  # no threads left, a driver that fails
                reports.say(f"Profiler is switched off: {error!r}{place(error)}")

    def _begin(self) -> None:
        self._capture.begin()
        with self._quietly:
            self._monitors.begin(self._clock.step, self._clock.mode)

    def step(self, /, **scalars: float | torch.Tensor) -> None:
        """Finish the present step.

        Args:
            scalars: losses and metrics by name: numbers, or tensors of any shape, whose mean is saved.  A name that
                contains ``loss`` belongs to the collection ``losses``, any other name to ``metrics``.  Other values
                are left out with one warning.

        Raises:
            StateError: with ``strict``, a selected tensor never came.  Errors of ``on_finding`` functions pass as well.
        """
        if self._ending.is_over():
            return
        enabled = torch.is_grad_enabled()
        try:
            self._finish(self._reports.readable(scalars))
        except BaseException as error:
            if not isinstance(
                error, Exception
            ):  # an interrupt, perhaps between a context's end and its effect
                set_grad_mode(enabled)
                self._capture.lose()
            raise

    def _finish(self, scalars: dict[str, float | torch.Tensor]) -> None:
        self._budget.begin_step()
        self._capture.finish(scalars)
        with self._quietly:
            self._monitors.end(self._clock.step, self._clock.mode, scalars)
        self._clock.tick()
        self._begin()
        self._reports.collect(self._monitors)
        self._reports.tell()
        self._capture.raise_missing()

    @contextlib.contextmanager
    def mode(self, mode: str) -> Iterator[None]:
        """Count and schedule the steps inside as ``train``, ``eval`` or ``predict``.

        Raises:
            InputError: there is no such mode.
        """
        validate.one_of("mode", mode, MODES, fix="write for instance: with watch.mode('eval')")
        before = self._clock.mode
        self._set_mode(mode)
        try:
            yield
        finally:
            self._set_mode(before)

    def _set_mode(self, mode: str) -> None:
        if mode != self._clock.mode and not self._ending.is_over():
            self._capture.drop()
            self._clock.mode = mode
            self._begin()

    def save(self, name: str, value: torch.Tensor | float, collection: str | None = None) -> None:
        """Save a copy of a tensor of your own in the present step; do nothing if the step is not saved.

        Args:
            name: name of the tensor.
            value: tensor of any shape, dtype and device, or a number.
            collection: collection of the tensor; default: all collections whose ``include`` or ``where`` selects it, or
                else ``saved``.  A name that a parameter has is saved as ``saved/<name>``, and a second tensor of one
                name and step as ``<name>#1``.

        Raises:
            InputError: there is no such collection.
        """
        if collection is not None:
            known = [c.name for c in self._what.collections]
            validate.one_of("collection", collection, known, fix="name it in the collections of the Watch")
        if self._ending.is_over():
            return
        self._capture.save(name, value, collection)

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Count the seconds inside as the phase ``name`` of the step: a word of your own, or ``data``.

        Raises:
            InputError: the name has another meaning in the profile.
        """
        return next((c.phase(name) for c in self._monitors.of(Profiler)), contextlib.nullcontext())

    @property
    def saves(self) -> bool:
        """True if the present step is saved; use it to prepare values for ``save`` only then."""
        return self._capture.saves and not self._ending.is_over()

    @property
    def findings(self) -> list[Finding]:
        """Findings so far, in order."""
        return self._reports.findings

    @property
    def should_stop(self) -> bool:
        """True if this rank has a finding at least as severe as ``stop_on``.

        Several ranks ask each other by ``loopwise.ranks.anywhere(watch.should_stop)``.
        """
        severity = self._options.stop_on
        return severity is not None and bool(at_least(self._reports.findings, severity))

    def state_dict(self) -> dict[str, Any]:
        """Return the step counters, for a checkpoint."""
        return self._clock.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set the step counters to the return value of ``state_dict`` in a checkpoint, and discard the open step.

        If they go back, what was saved of the steps from there on is superseded: readers do not show it any more.
        """
        goes_back = state["step"] < self._clock.step
        self._clock.load_state_dict(state)
        if not self._ending.is_over():
            self._capture.drop()
            self._capture.hand_over()
            if goes_back and self._writer is not None:
                self._writer.restart(self._clock.step)
            self._begin()

    def close(self, state: str = "finished") -> None:
        """Write all pending steps and findings, remove all hooks, and release the run.

        A run that was opened by its path ends when the last part that uses it is closed or freed.  An interrupt (Ctrl-C)
        takes effect after this; a second one takes effect at once, and ``close`` can be called again.

        Args:
            state: ``finished`` or ``failed``.

        Raises:
            InputError: ``state`` is another value.
        """
        validate.one_of("state", state, ("finished", "failed"))
        enabled = torch.is_grad_enabled()
        try:
            with Delayed():
                self._ending.close(state)
        finally:
            set_grad_mode(enabled)
        self._finalizer.detach()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("finished" if kind is None else "failed")
