"""What goes along with a ``Watch`` at every step, on every rank, whether the step is saved or not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

import torch

from ..model.vocabulary import place
from ..rules import Finding

T = TypeVar("T")
Scalars = Mapping[str, float | torch.Tensor]


class Companion(Protocol):
    """Looks at each step, and may find something."""

    def begin(self, step: int, mode: str) -> None:
        """A step begins; steps are counted over all modes."""

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        """A step ended, with the losses and metrics that ``Watch.step`` was given."""

    def findings(self) -> list[Finding]:
        """What was found since the last call."""

    def close(self) -> None:
        """There are no more steps; what was begun and not ended is none."""


class Companions:
    """Calls them; one that fails is closed and left out.

    Args:
        companions: all of them.
        say: called with what has to be said.
    """

    def __init__(self, companions: Iterable[Companion], say: Callable[[str], None]) -> None:
        self._all, self._say = list(companions), say
        self._left: list[Finding] = []

    def begin(self, step: int, mode: str) -> None:
        self._each(lambda companion: companion.begin(step, mode))

    def end(self, step: int, mode: str, scalars: Scalars) -> None:
        self._each(lambda companion: companion.end(step, mode, scalars))

    def findings(self) -> list[Finding]:
        found: list[Finding] = []
        self._each(lambda companion: found.extend(companion.findings()))
        found, self._left = found + self._left, []
        return found

    def close(self) -> None:
        self._each(lambda companion: companion.close())

    def of(self, kind: type[T]) -> Iterator[T]:
        """Those of a class that still go along."""
        return (companion for companion in self._all if isinstance(companion, kind))

    def _each(self, action: Callable[[Companion], None]) -> None:
        for companion in list(self._all):
            try:
                action(companion)
            except Exception as error:
                self._all.remove(companion)
                self._say(f"{type(companion).__name__} is switched off: {error!r}{place(error)}")
                self._end(companion)
                self._left += _told(companion)

    def _end(self, companion: Companion) -> None:
        try:
            companion.close()
        except Exception as error:
            self._say(f"{type(companion).__name__} could not be closed: {error!r}")


def _told(companion: Companion) -> list[Finding]:
    """What one that failed had found."""
    try:
        return companion.findings()
    except Exception:
        return []
