"""What the callbacks of trainers share: a ``Watch`` that is opened and closed as training begins and ends."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loopwise.ranks import anywhere, world_size
from loopwise.run import Run

from .watch import Watch

AGREE = 50
"""Training steps between two of which several ranks ask each other whether to stop."""


class Session:
    """A ``Watch`` over one run folder, opened again where training goes on.

    Args:
        run: folder or fsspec URL, or a ``Run``, which the caller closes.
        options: those of ``Watch``.

    Attributes:
        watch: the open one.
        counters: step counters of the one before.
        mode: the mode of the steps now.
    """

    def __init__(self, run: str | os.PathLike[str] | Run, options: Mapping[str, Any]) -> None:
        self._run, self._options = run, dict(options)
        self._resumed: Run | None = None
        self._inside = contextlib.ExitStack()
        self._said = False
        self.watch: Watch | None = None
        self.counters: dict[str, Any] = {}
        self.mode = "train"

    def open(
        self,
        model: nn.Module,
        optimizer: Optimizer | Mapping[str, Optimizer] | None,
        *,
        scaler: Any = None,
        counters: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        """Begin to watch.

        Args:
            counters: where the step counters go on.
            resume: go on in the folder of an earlier run.

        Raises:
            InputError: options that ``Watch`` refuses.
            StateError: the folder holds a run, and ``resume`` is false.
        """
        place = self._run if isinstance(self._run, Run) else str(self._run)
        if resume and isinstance(place, str):
            place = self._resumed = Run(place, resume=True)
        try:
            self.watch = Watch(model, optimizer, run=place, scaler=scaler, **self._options)
            if counters is not None:
                self.watch.load_state_dict(counters)
        except BaseException:
            self.close("failed")
            raise

    def close(self, state: str = "finished") -> None:
        """End the run, if one goes on."""
        watch, self.watch = self.watch, None
        with self.guarded():
            self._inside.close()
            if watch is not None:
                self.counters = watch.state_dict()
                watch.close(state)
            if self._resumed is not None:
                self._resumed.close(state)
        self._resumed, self.mode = None, "train"

    def turn(self, mode: str) -> None:
        """Count and schedule the steps from now on as those of ``mode``."""
        if self.watch is None or mode == self.mode:
            return
        self._inside.close()
        self.mode = mode
        if mode != "train":
            self._inside.enter_context(self.watch.mode(mode))

    def step(self, read: Callable[[], Mapping[str, Any]] = dict) -> None:
        """End the present step.

        Args:
            read: gives its losses and metrics; called where the step is saved.  What is no number is left out.
        """
        if self.watch is None:
            return
        scalars: dict[str, float | torch.Tensor] = {}
        if self.watch.saves:
            with self.guarded():
                scalars = numbers(read())
        self.watch.step(**scalars)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Nothing that fails inside ends training; it is said once."""
        try:
            yield
        except Exception as error:
            if not self._said:
                self._said = True
                warnings.warn(f"loopwise.debug: {error!r}", RuntimeWarning, stacklevel=3)


class Watching:
    """What the callback of every trainer is.

    Args:
        run: folder or fsspec URL of the run, or a ``Run``, which the caller closes.
        stop_on: severity of findings (``warning``, ``critical``) from which on training is stopped; default: never.
        options: those of ``Watch``.

    Raises:
        InputError: there is no such severity.
    """

    def __init__(
        self, *, run: str | os.PathLike[str] | Run, stop_on: str | None = None, **options: Any
    ) -> None:
        if stop_on is not None:
            options.severity(stop_on)
        self._session = Session(run, {**options, "stop_on": stop_on})
        self._stop_on, self._steps = stop_on, 0

    def _stops(self) -> bool:
        """Whether training is to be stopped for what was found; all ranks ask at once, and get one answer."""
        if self._stop_on is None:
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


def numbers(found: Mapping[str, Any]) -> dict[str, float | torch.Tensor]:
    """The values that are one number each."""
    return {str(name): value for name, value in found.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and not value.is_complex()
    return isinstance(value, Real) and not isinstance(value, bool)
