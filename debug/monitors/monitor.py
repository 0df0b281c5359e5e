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
        self._all, self._say = list(monitors), say
        self._last_findings: list[Finding] = []

    def add(self, monitor: Monitor) -> None:
        """Add a monitor, which is called after the others."""
        self._all.append(monitor)

    def begin(self, step: int, mode: str) -> None:
        self._call(lambda monitor: monitor.begin(step, mode))

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        self._call(lambda monitor: monitor.end(step, mode, scalars))

    def findings(self) -> list[Finding]:
        findings: list[Finding] = []
        self._call(lambda monitor: findings.extend(monitor.findings()))
        findings, self._last_findings = findings + self._last_findings, []
        return findings

    def close(self) -> None:
        self._call(lambda monitor: monitor.close())

    def of(self, kind: type[T]) -> Iterator[T]:
        """Yield the remaining monitors of a class."""
        return (monitor for monitor in self._all if isinstance(monitor, kind))

    def _call(self, action: Callable[[Monitor], None]) -> None:
        for monitor in list(self._all):
            try:
                action(monitor)
            except Exception as error:
                self._all.remove(monitor)
                self._say(f"{type(monitor).__name__} is switched off: {error!r}{place(error)}")
                self._remove(monitor)

    def _remove(self, monitor: Monitor) -> None:
        """Close a monitor that raised, and keep the findings that it made before."""
        try:
            monitor.close()
        except Exception as error:
            self._say(f"{type(monitor).__name__} could not be closed: {error!r}")
        with contextlib.suppress(Exception):
            self._last_findings += monitor.findings()
