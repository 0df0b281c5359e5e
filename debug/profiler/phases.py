"""What the time of each step goes into, on the training thread.

A step is from where the one before ended to its own end.  In it are, in seconds:

``data``: waiting for a ``DataLoader``, also for its workers to start and its epoch to end;
``to_device``: from a batch's arrival to the model's forward pass, which is where it is moved;
``forward``: forward passes of the models;
``backward``: from the end of a forward pass with gradients to the optimizer's step, the next batch or
the next forward pass, whichever comes first: the loss, the backward pass, clipping;
``optimizer``: the optimizers' steps;
``loopwise``: what the ``Watch`` itself took;
``other``: the rest, less the user's own phases.

What the ``Watch`` takes is in no other phase.  Where a forward pass cannot be seen (a model inside of a
compiled function), its time and that of backward are ``other``; so is that of an optimizer's step inside of one.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

from loopwise import preserve
from loopwise.errors import InputError

from ..hooks.guards import is_extra_pass
from ..rules.profile.series import FIXED, KINDS
from .cuda_events import GPU, Events, Spans

DATA, TO_DEVICE, FORWARD, BACKWARD, OPTIMIZER = range(len(KINDS))
_TAKEN = frozenset({*FIXED, *GPU, "mode"} - {*KINDS})
"""What no phase of the user's can be called."""
ROW = 0.05
"""Seconds of training in a row, at least: steps that are shorter share one, or a fast loop would fill the disk."""


@dataclass(slots=True)
class Row:
    """Steps of one mode that follow each other."""

    mode: str
    step: int = 0
    count: int = 0
    time: float = 0.0
    seconds: float = 0.0
    longest: float = 0.0
    workers: int = 0
    loopwise: float = 0.0
    kinds: list[float] = field(default_factory=lambda: [0.0] * len(KINDS))
    """Seconds of each of ``KINDS``."""
    more: dict[str, float] = field(default_factory=dict)
    """Seconds of the user's phases, and of ``GPU``."""
    spans: Spans = field(default_factory=list)
    """On a CUDA device, what is still to be read."""


class Phases:
    """Adds up the time of each step.  All but ``drain`` is for the training thread, and ignores others.

    Args:
        spent: seconds that the ``Watch`` has taken so far.
        events: for the times of a CUDA device; ``None``: there is none.
        clock: seconds.
    """

    def __init__(
        self,
        spent: Callable[[], float],
        events: Events | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._spent, self._events, self._clock = spent, events, clock
        self._thread = get_ident()
        self._row: Row | None = None
        self._waiting: deque[Row] = deque()
        """Rows whose times a device has not told yet."""
        self._ready: deque[Row] = deque()
        self._workers = 0
        self._named: str | None = None
        self._since = 0.0
        self._forget()

    def _forget(self) -> None:
        self._seconds = [0.0] * len(KINDS)
        self._users: dict[str, float] = {}
        self._spans: Spans = []
        self._total = 0.0
        self._inside = self._named is not None
        """Whether the time is that of a phase of the user's, or of a loader."""
        self._depth = 0
        self._arrived: float | None = None
        self._after: float | None = None
        self._mark: Any = None

    def _now(self) -> float:
        """Seconds, without those of the ``Watch``."""
        return self._clock() - self._spent()

    def _add(self, kind: int, seconds: float) -> None:
        if seconds > 0:
            self._seconds[kind] += seconds
            self._total += seconds

    # -- steps ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """A step begins; the one that was begun and not ended is none."""
        self._thread = get_ident()
        self._forget()
        self._start, self._own = self._clock(), self._spent()
        self._since = self._start - self._own

    def end(self, step: int, mode: str) -> None:
        """A step ends."""
        self._end_backward(self._now())
        self._end_named()
        seconds, own = self._clock() - self._start, self._spent() - self._own
        row = self._row
        if row is None or row.mode != mode:
            self.close_row()
            row = self._row = Row(mode)
        row.step, row.time = step, time.time()
        row.count += 1
        row.seconds += seconds
        row.loopwise += own
        row.workers = self._workers
        if seconds > row.longest:
            row.longest = seconds
        if self._spans:
            row.spans += self._spans
        row.kinds = [before + now for before, now in zip(row.kinds, self._seconds, strict=True)]
        for name, value in self._users.items():
            row.more[name] = row.more.get(name, 0.0) + value
        if row.seconds >= ROW:
            self.close_row()

    def close_row(self) -> None:
        """What there is of a row becomes one, and rows whose times a device has told by now are ready."""
        if self._row is not None:
            self._waiting.append(self._row)
            self._row = None
        while self._waiting and (self._events is None or self._events.read(self._waiting[0])):
            self._ready.append(self._waiting.popleft())

    def close(self) -> None:
        """There are no more steps; a device's times that it has not told yet are left out."""
        try:
            self.close_row()
        finally:
            while self._waiting:
                self._ready.append(self._waiting.popleft())

    def drain(self) -> dict[str, Any] | None:
        """Rows that are ready, as a record: ``columns``, and ``rows`` with the mode before them."""
        found = [self._ready.popleft() for _ in range(len(self._ready))]
        if not found:
            return None
        gpu = GPU if self._events is not None else ()
        more = [*gpu, *sorted({name for row in found for name in row.more} - {*GPU})]
        return {"columns": [*FIXED, *more], "rows": [_numbers(row, more) for row in found]}

    # -- what happens in a step -----------------------------------------------------------------

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time inside is that of the phase ``name``, whatever happens in it."""
        if not isinstance(name, str) or not name or name in _TAKEN:
            raise InputError(
                f"the phase {name!r}",
                f"a word that is none of {', '.join(sorted(_TAKEN))}",
                "the name of something that a step's record has already",
                'phase("augmentation")',
            )
        if self._inside or get_ident() != self._thread:
            yield
            return
        now = self._now()
        self._end_backward(now)
        self._inside, self._arrived = True, None
        self._named, self._since = name, now
        try:
            yield
        finally:
            self._end_named()
            self._inside, self._named = False, None

    def _end_named(self) -> None:
        """The time so far belongs to the user's phase that is open, if one is."""
        if self._named is None:
            return
        now = self._now()
        seconds = now - self._since
        if self._named in KINDS:
            self._add(KINDS.index(self._named), seconds)
        else:
            self._users[self._named] = self._users.get(self._named, 0.0) + seconds
            self._total += seconds
        self._since = now

    def loads(self) -> float | None:
        """A loader is asked for a batch: when, or ``None`` where that is none of the step's."""
        if self._inside or get_ident() != self._thread:
            return None
        now = self._now()
        self._end_backward(now)
        self._inside, self._depth = True, 0  # a forward pass that goes on has raised
        return now

    def loaded(self, start: float, workers: int, arrived: bool = True) -> None:
        """The batch is there; or there is none, as where workers were started or the epoch is over."""
        self._inside, now = False, self._now()
        self._add(DATA, now - start)
        self._arrived = now if arrived else None
        if arrived:
            self._workers = workers

    def forward_begins(self) -> None:
        if self._inside or get_ident() != self._thread or is_extra_pass():
            return
        self._depth += 1
        if self._depth > 1:  # a model in a model
            return
        now = self._now()
        if self._after is not None:
            self._end_backward(now)
        elif self._arrived is not None:
            self._add(TO_DEVICE, now - self._arrived)
        self._arrived = None
        self._began = now - self._total
        self._mark = self._recorded()

    def forward_ends(self, grad: bool) -> None:
        """Args: grad: a backward pass may follow."""
        if self._inside or get_ident() != self._thread:
            return
        if not self._depth or preserve.inside():
            if self._arrived is not None:  # a pass that chose what is in the batch
                self._arrived = self._now()
            return
        if self._depth > 1:
            self._depth -= 1
            return
        self._depth, now = 0, self._now()
        self._add(FORWARD, now - self._total - self._began)
        self._span("forward")
        self._after = now if grad else None

    def optimizer_begins(self) -> None:
        if self._inside or get_ident() != self._thread:
            return
        now = self._now()
        self._end_backward(now)
        self._arrived, self._depth = None, 0
        self._updating = now - self._total
        self._mark = self._recorded()

    def optimizer_ends(self) -> None:
        if self._inside or get_ident() != self._thread:
            return
        now = self._now()
        self._end_backward(now)  # of a closure
        self._add(OPTIMIZER, now - self._total - self._updating)
        self._span("optimizer")

    def _end_backward(self, now: float) -> None:
        if self._after is not None:
            self._add(BACKWARD, now - self._after)
            self._after = None
            self._span("backward")

    # -- on a device ----------------------------------------------------------------------------

    def _recorded(self) -> Any:
        return None if self._events is None else self._events.record()

    def _span(self, kind: str) -> None:
        """What came since the last mark is of ``kind``."""
        if self._events is not None:
            now = self._events.record()
            if self._mark is not None and now is not None:
                self._spans.append((f"gpu_{kind}", self._mark, now))
            self._mark = now


def _numbers(row: Row, more: list[str]) -> list[Any]:
    own = sum(row.kinds) + sum(value for name, value in row.more.items() if name not in GPU)
    seconds = [*row.kinds, row.loopwise, max(0.0, row.seconds - row.loopwise - own)]
    seconds += [row.more.get(name, 0.0) for name in more]
    first = [row.mode, row.step, row.count, round(row.time, 3), round(row.seconds, 6)]
    return [*first, round(row.longest, 6), row.workers, *(round(value, 6) for value in seconds)]
