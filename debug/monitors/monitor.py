"""Monitors of a ``Watch``, which see every step on every rank, whether the step is saved or not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

import torch

from ..model.vocabulary import place
from ..rules import Finding

T = TypeVar("T")
Scalars = Mapping[str, float | torch.Tensor]


class Monitor(Protocol):
    """Observer of each step, which may make findings.  Implementations inherit these contracts without own docstrings."""

    def begin(self, step: int, mode: str) -> None:
        """Begin a step; ``step`` counts the steps of all modes."""

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        """Finish a step, with the losses and metrics that ``Watch.step`` was called with."""

    def findings(self) -> list[Finding]:
        """Return the findings since the last call."""

    def close(self) -> None:
        """Release resources.  A step that was begun but not finished is discarded."""


class Monitors:
    """Group of monitors with the methods of one; a monitor that raises is closed and removed.

    Args:
        say: function that is called with messages for the user.
        monitors: the monitors, in the order in which they are called.
    """

    def __init__(self, say: Callable[[str], None], monitors: Iterable[Monitor] = ()) -> None:
        self._all, self._say = tuple(monitors), say
        self._last_findings: list[Finding] = []

    def add(self, monitor: Monitor) -> None:
        """Add a monitor, which is called after the others."""
        self._all = (*self._all, monitor)

    def begin(self, step: int, mode: str) -> None:
        for monitor in self._all:
            try:
                monitor.begin(step, mode)
            except Exception as error:
                self._drop(monitor, error)

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        for monitor in self._all:
            try:
                monitor.end(step, mode, scalars)
            except Exception as error:
                self._drop(monitor, error)

    def findings(self) -> list[Finding]:
        findings: list[Finding] = []
        for monitor in self._all:
            try:
                findings += monitor.findings()
            except Exception as error:
                self._drop(monitor, error)
        findings, self._last_findings = findings + self._last_findings, []
        return findings

    def close(self) -> None:
        for monitor in self._all:
            try:
                monitor.close()
            except Exception as error:
                self._drop(monitor, error)

    def of(self, kind: type[T]) -> Iterator[T]:
        """Yield the remaining monitors of a class."""
        return (monitor for monitor in self._all if isinstance(monitor, kind))

    def _drop(self, monitor: Monitor, error: Exception) -> None:
        """Remove and close a monitor that raised, and keep the findings that it made before."""
        self._all = tuple([other for other in self._all if other is not monitor])
        self._say(f"{type(monitor).__name__} is switched off: {error!r}{place(error)}")
        try:
            monitor.close()
        except Exception as error:
            self._say(f"{type(monitor).__name__} could not be closed: {error!r}")
        with contextlib.suppress(Exception):
            self._last_findings += monitor.findings()
