"""Base of the callbacks of trainers: a ``Watch`` that is opened and closed as training begins and ends."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise import validate
from loopwise.ranks import anywhere, is_main, world_size
from loopwise.run import Run, location
from loopwise.warnings import warn

from . import options as validation
from .loggers import Logger
from .options import WatchOptions
from .rules import Finding
from .watch import Watch

AGREE = 50
"""Number of training steps after which several ranks ask each other whether to stop."""


TRAINER = "trainer"
"""Value of ``loggers``: the loggers that the trainer has."""


class Session:
    """A ``Watch`` over one run folder, which is opened again if training goes on.

    Args:
        run: folder or fsspec URL, or a ``Run``, which the caller closes.
        resume: go on in a folder that already holds a run.
        options: options of the ``Watch``.

    Attributes:
        watch: the open ``Watch``.
        run: the run of the present or latest ``Watch``.
        counters: step counters of the previous ``Watch``.
        mode: mode of the present step.
    """

    def __init__(self, run: str | os.PathLike[str] | Run, resume: bool, options: WatchOptions) -> None:
        self._run, self._resume, self._options = run, resume, options
        self._inside = contextlib.ExitStack()
        self._warned = False
        self.watch: Watch | None = None
        self.run: Run | None = None
        self._findings: list[Finding] = []
        self.counters: dict[str, Any] = {}
        self.mode = "train"

    _opened: ClassVar[weakref.WeakSet[Session]] = weakref.WeakSet()
    """Sessions that are open in this process."""

    def open(
        self,
        model: nn.Module,
        optimizer: Optimizer | Mapping[str, Optimizer] | None,
        *,
        scaler: Any = None,
        counters: Mapping[str, Any] | None = None,
        resume: bool = False,
        loggers: Callable[[], Iterable[Logger]] | None = None,
    ) -> None:
        """Begin to watch.

        If another session is still open in the same folder, its training ended by an exception that no callback saw:
        the session is closed as failed.

        Args:
            model, optimizer, scaler: arguments of ``Watch``.
            counters: step counters to go on from.
            resume: go on in the folder of an earlier run.
            loggers: function that returns the loggers in place of those of the options; not called on other ranks
                than rank 0.

        Raises:
            StateError: the folder cannot be written to.
        """
        resume = (resume or self._resume) and not isinstance(self._run, Run)
        arguments = self._options.arguments()
        if loggers is not None and is_main():
            with self.guarded():
                arguments["loggers"] = list(loggers())
        for other in list(self._opened):
            if other is not self and location(other._run) == location(self._run):
                other.close("failed")
        self._opened.add(self)
        try:
            self.watch = Watch(model, optimizer, run=self._run, resume=resume, scaler=scaler, **arguments)
            self.run = self.watch.run
            if counters is not None:
                self.watch.load_state_dict(counters)
        except BaseException:
            self.close("failed")
            raise

    def close(self, state: str = "finished") -> None:
        """Close the ``Watch``, if one is open; ``state`` is ``finished`` or ``failed``."""
        watch, self.watch = self.watch, None
        self._opened.discard(self)
        with self.guarded():
            self._inside.close()
            if watch is not None:
                self.counters = watch.state_dict()
                watch.close(state)
                self._findings = watch.findings
        self.mode = "train"

    def set_mode(self, mode: str) -> None:
        """Count and schedule the steps from now on as those of ``mode``."""
        if self.watch is None or mode == self.mode:
            return
        self._inside.close()
        self.mode = mode
        if mode != "train":
            self._inside.enter_context(self.watch.mode(mode))

    @property
    def findings(self) -> list[Finding]:
        """Findings of the present or latest ``Watch``, in order."""
        return self._findings if self.watch is None else self.watch.findings

    @property
    def saves_scalars(self) -> bool:
        """True if losses and metrics of the present step are saved: with the default schedule, at every step."""
        return self.watch is not None and (self._options.every_scalar or self.watch.saves)

    def step(self, read: Callable[[], Mapping[str, Any]] = dict) -> None:
        """Finish the present step.

        Args:
            read: function that returns losses and metrics; called if the step, or its scalars, are saved.  Values that
                are no numbers are left out.
        """
        if self.watch is None:
            return
        scalars: dict[str, float | torch.Tensor] = {}
        if self.saves_scalars:
            with self.guarded():
                scalars = numbers(read())
        self.watch.step(**scalars)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Catch all errors inside, so that training goes on, and warn of the first one."""
        try:
            yield
        except Exception as error:
            if not self._warned:
                self._warned = True
                warn(f"loopwise.debug: {error!r}", stacklevel=3)


class WatchingCallback:
    """Common part of the callbacks of all trainers.

    Args:
        run: folder or fsspec URL of the run, or a ``Run``, which the caller closes.
        resume: go on in a folder that already holds a run; only if ``run`` is a path.
        loggers: ``"trainer"``: those of the trainer; or loggers of ``loopwise.debug.loggers``; ``()`` for none.
        options: options of ``Watch``.

    Raises:
        InputError: an argument cannot be used.
    """

    def __init__(
        self,
        *,
        run: str | os.PathLike[str] | Run,
        resume: bool = False,
        loggers: str | Iterable[Logger] = TRAINER,
        **options: Any,
    ) -> None:
        validation.run(run, resume)
        self._of_trainer = isinstance(loggers, str)
        if isinstance(loggers, str):
            fix = "pass loggers='trainer', loggers=(), or a list of loggers"
            validate.one_of("loggers", loggers, (TRAINER,), "the name of a logger", fix)
        else:
            options["loggers"] = loggers
        self._options = WatchOptions.of(options)
        self._session = Session(run, resume, self._options)
        self._steps = 0

    def _should_stop(self) -> bool:
        """Return whether a finding asks to stop; all ranks ask at the same steps and get one answer."""
        if self._options.stop_on is None:
            return False
        self._steps += 1
        if world_size() > 1 and self._steps % AGREE:
            return False
        watch = self._session.watch
        return anywhere(watch is not None and watch.should_stop)

    @property
    def watch(self) -> Watch | None:
        """The ``Watch`` while training, to save tensors by hand."""
        return self._session.watch

    @property
    def run(self) -> Run | None:
        """The run of the present or latest training: ``run.url`` is its folder; ``None`` before."""
        return self._session.run

    @property
    def findings(self) -> list[Finding]:
        """Findings of the present or latest training, in order."""
        return self._session.findings


def numbers(values: Mapping[str, Any]) -> dict[str, float | torch.Tensor]:
    """Return the values that are a single number."""
    return {str(name): value for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, Real) and not isinstance(value, bool)
