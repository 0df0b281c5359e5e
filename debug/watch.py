"""Watch a training run: save scalars and tensors of chosen steps without hurting it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise.ranks import is_main, world_size
from loopwise.run import Run
from loopwise.schedule import every
from loopwise.wrappers import is_sharded

from . import options
from .alerts.notices import Tell
from .capture.budget import Budget
from .capture.capture import Capture, Wanted
from .capture.clock import Clock
from .capture.collection import Collection, collection_of
from .capture.writer import Writer
from .company import company
from .model import names
from .model.vocabulary import Save
from .monitors.monitor import Monitors
from .profiler import Profile, Profiler
from .reporting import Reports
from .rules import Finding, at_least
from .rules.saved_steps import SavedStepRules
from .rules.thresholds import Rules, of_source, select


class Watch:
    """Saves what training does into a run folder; ``SavedRun`` reads it, also while training goes on.

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
        stop_on: severity of findings (``warning``, ``critical``) from which on ``should_stop`` is true.
        on_finding: called with each `Finding`, by ``step`` on the training thread, once it is known (that training stalls,
            from another thread); one function or several, such as those of ``loopwise.debug.alerts.destinations``; default: it is
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
        profile: sample the machine and time the phases of each step; a `Profile` says more.
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
        rules: Rules = "auto",
        on_finding: Tell | Sequence[Tell] | None = None,
        stop_on: str | None = None,
        scaler: Any = None,
        policy: str = "block",
        max_overhead: float | None = None,
        gather: bool = False,
        trap: bool = True,
        profile: bool | Profile = True,
        strict: bool = False,
    ) -> None:
        models = names.by_key(model, nn.Module, "model")
        options.models(models)
        optimizers = {} if optimizer is None else names.by_key(optimizer, Optimizer, "optimizer")
        chosen = options.collections([collection_of(c) for c in collections])
        sharded = any(is_sharded(m) for m in models.values())
        options.options(save, policy, max_overhead, sharded and world_size() > 1)
        if stop_on is not None:
            options.severity(stop_on)
        judged = rules != "auto" or any(c.name == "health" for c in chosen)
        sources = [*(("saved step", "ranks") if judged else ()), *(["NaN trap"] if trap else [])]
        selected = select(rules, *sources, *(["profile"] if profile is not False else []))
        judge = SavedStepRules(selected) if of_source(selected, "saved step") else None
        wanted = Wanted(
            models,
            optimizers,
            chosen,
            every(500) if save is None else save,
            scaler,
            policy,
            gather and sharded,
            strict,
        )
        self._own, self._closed, self._stop_on = not isinstance(run, Run), False, stop_on
        self.run = run if isinstance(run, Run) else Run(str(run))
        writes = is_main() or (sharded and not gather)
        pinned = names.device(models).type == "cuda"
        self._writer = Writer(self.run, pinned, policy, judge) if writes else None
        self.counts: Counter[str] = Counter()
        """Steps ``saved``, ``dropped`` or ``reduced`` by the policy, ``thinned`` by the budget, ``failed``."""
        self._clock, self._budget = Clock(), Budget(max_overhead)
        self._reports = Reports(self.run, self._writer, self._clock, self.counts, on_finding)
        shared = self._clock, self._budget, self.counts, self._reports
        self._capture = Capture(wanted, writes or wanted.gather, self._writer, *shared)
        self._monitors = Monitors(
            company(wanted, self.run, self._reports, self._budget, selected, trap, profile),
            self._reports.say,
        )
        self._begin()

    def _begin(self) -> None:
        self._capture.begin()
        with self._budget.counted(), torch.no_grad():
            self._monitors.begin(self._clock.step, self._clock.mode)

    def step(self, /, **scalars: float | torch.Tensor) -> None:
        """End the present step, with its losses and metrics by name: numbers, or tensors (their mean).

        A name that has ``loss`` in it belongs to the collection ``losses``, any other one to ``metrics``.
        """
        if self._closed:
            return
        self._capture.finish(scalars)
        with self._budget.counted(), torch.no_grad():
            self._monitors.end(self._clock.step, self._clock.mode, scalars)
        self._clock.tick()
        self._begin()
        self._reports.collect(self._monitors)
        self._reports.tell()
        self._capture.raise_missing()

    @contextlib.contextmanager
    def mode(self, mode: str) -> Iterator[None]:
        """Steps inside are counted and scheduled as ``train``, ``eval`` or ``predict``."""
        options.mode(mode)
        before = self._clock.mode
        self._turn(mode)
        try:
            yield
        finally:
            self._turn(before)

    def _turn(self, mode: str) -> None:
        if mode != self._clock.mode and not self._closed:
            self._capture.drop()
            self._clock.mode = mode
            self._begin()

    def save(self, name: str, value: torch.Tensor | float, collection: str | None = None) -> None:
        """Save a tensor of the user's in the present step.

        Args:
            name: what to call it.
            value: tensor or number.
            collection: the collection that it belongs to; default: those whose ``include`` or ``where`` fits the name.
        """
        self._capture.save(name, value, collection)

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """The time inside belongs to the phase ``name`` of the step: a word of the user's, or ``data``.

        Raises:
            InputError: the name of something else in the profile.
        """
        return next((c.phase(name) for c in self._monitors.of(Profiler)), contextlib.nullcontext())

    @property
    def saves(self) -> bool:
        """Whether the present step is saved: to prepare what ``save`` gets only then."""
        return self._capture.saves

    @property
    def findings(self) -> list[Finding]:
        """What the rules found so far, in order."""
        return self._reports.findings

    @property
    def should_stop(self) -> bool:
        """Whether something at least as severe as ``stop_on`` was found by this rank.

        Several ranks ask each other: ``loopwise.ranks.anywhere(watch.should_stop)``.
        """
        return self._stop_on is not None and bool(at_least(self._reports.findings, self._stop_on))

    def state_dict(self) -> dict[str, Any]:
        """The step counters, for a checkpoint."""
        return self._clock.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where a checkpoint's run was."""
        self._capture.drop()
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
        self._capture.close()
        self._monitors.close()
        self._reports.collect(self._monitors)
        if self._writer is not None:
            self._writer.close()
        if self._own:
            self._reports.attempt("the end of the run could not be written", lambda: self.run.close(state))
        try:
            self._reports.tell()
        finally:
            self._reports.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("finished" if kind is None else "failed")
