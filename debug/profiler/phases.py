"""Account of the time of each training step, kept on the training thread.

A step lasts from the end of the step before to its own end.  Its time is divided into these phases, in seconds:

``data``
    Waiting for a ``DataLoader``, including the start of its workers and the end of its epoch.
``to_device``
    From the arrival of a batch to the model's forward pass: the move to the device happens here.
``forward``
    Forward passes of the models.
``backward``
    From the end of a forward pass with gradients to the optimizer's step, the next batch or the next forward
    pass, whichever comes first: the loss, the backward pass, clipping.
``optimizer``
    Steps of the optimizers.
``loopwise``
    Time of the ``Watch`` itself, which is part of no other phase.
``other``
    The rest, less the phases that the user named.

A forward pass that cannot be observed (a model inside of a compiled function) counts as ``other``, together with its
backward pass.

Rows of ``debug/phases`` (see ``loopwise.debug.profiler.sampler``) describe consecutive steps of one mode.  A row has
the mode, and then the numbers of its columns: ``step``, the last one; ``count``, the number of steps; ``time``, the end
of the last step in seconds since the epoch; ``seconds`` of all steps; ``longest``, seconds of the longest step;
``workers``, worker processes of the loader; and seconds of each phase above.  On a CUDA device ``gpu_forward``,
``gpu_backward`` and ``gpu_optimizer`` follow: seconds on the device, from the start of the phase's first kernel to
the end of its last.  The user's phases come last.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

from loopwise import preserve
from loopwise.errors import InputError

from ..hooks.guards import is_extra_pass
from ..rules.profile.series import FIXED, KINDS
from .cuda_events import GPU, Events, Spans

DATA, TO_DEVICE, FORWARD, BACKWARD, OPTIMIZER = KINDS
_RESERVED = frozenset({*FIXED, *GPU, "mode"} - {*KINDS})
"""Names that a phase of the user's cannot have."""
ROW = 0.05
"""Smallest time of training in a row, in seconds: shorter steps share a row, so that a fast loop does not fill the disk."""


@dataclass(slots=True)
class Row:
    """Time of consecutive steps of one mode."""

    mode: str
    step: int = 0
    count: int = 0
    time: float = 0.0
    seconds: float = 0.0
    longest: float = 0.0
    workers: int = 0
    loopwise: float = 0.0
    phases: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Seconds of ``KINDS``, of ``GPU`` and of the user's phases."""
    spans: Spans = field(default_factory=list)
    """Spans whose times are to be read from the CUDA device."""

    def numbers(self, more: list[str]) -> list[Any]:
        """Return mode, ``FIXED`` and the phases ``more`` as the record has them."""
        own = sum(value for name, value in self.phases.items() if name not in GPU)
        rest = max(0.0, self.seconds - self.loopwise - own)
        kinds, others = ([self.phases[name] for name in names] for names in (KINDS, more))
        seconds = [*kinds, self.loopwise, rest, *others]
        first = [self.mode, self.step, self.count, round(self.time, 3), round(self.seconds, 6)]
        return [*first, round(self.longest, 6), self.workers, *(round(value, 6) for value in seconds)]


class Phases:
    """Account of the time of each step.  All methods but ``drain`` ignore calls from other threads than training's.

    Args:
        spent: returns the seconds that the ``Watch`` has taken so far.
        events: recorder of a CUDA device; ``None``: there is none.
        clock: returns seconds.
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
        """Rows whose times the device does not have yet."""
        self._ready: deque[Row] = deque()
        self._workers = 0
        self._named: str | None = None
        self._since = 0.0
        self._forget()

    def _forget(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._spans: Spans = []
        self._total = 0.0
        self._inside = self._named is not None
        """Whether the current time belongs to a phase of the user's, or to a loader."""
        self._depth = 0
        self._arrived: float | None = None
        self._after: float | None = None
        self._mark: Any = None

    def _now(self) -> float:
        """Return seconds, without those of the ``Watch``."""
        return self._clock() - self._spent()

    def _add(self, phase: str, seconds: float) -> None:
        if seconds > 0:
            self._seconds[phase] += seconds
            self._total += seconds

    # -- steps ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin a step; a step that was begun but not ended is discarded."""
        self._thread = get_ident()
        self._forget()
        self._start, self._own = self._clock(), self._spent()
        self._since = self._start - self._own

    def end(self, step: int, mode: str) -> None:
        """End a step and add it to the current row."""
        if self._after is not None:
            self._end_backward(self._now())
        if self._named is not None:
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
        row.longest = max(row.longest, seconds)
        row.spans += self._spans
        for name, value in self._seconds.items():
            row.phases[name] += value
        if row.seconds >= ROW:
            self.close_row()

    def close_row(self) -> None:
        """Complete the current row, and read the times of rows that the device has by now."""
        if self._row is not None:
            self._waiting.append(self._row)
            self._row = None
        while self._waiting and self._has_times(self._waiting[0]):
            self._ready.append(self._waiting.popleft())

    def _has_times(self, row: Row) -> bool:
        """Read the times of a row from the device, and return whether it has them."""
        seconds = {} if self._events is None else self._events.seconds(row.spans)
        if seconds is None:
            return False
        row.phases |= seconds
        row.spans = []
        return True

    def close(self) -> None:
        """Complete the last row; times that the device does not have yet are left out."""
        try:
            self.close_row()
        finally:
            self._ready.extend(self._waiting)
            self._waiting.clear()

    def drain(self) -> dict[str, Any] | None:
        """Return the complete rows as a record: ``columns``, and ``rows`` with the mode before the numbers."""
        rows = [self._ready.popleft() for _ in range(len(self._ready))]
        if not rows:
            return None
        gpu = GPU if self._events is not None else ()
        more = [*gpu, *sorted({name for row in rows for name in row.phases} - {*GPU, *KINDS})]
        return {"columns": [*FIXED, *more], "rows": [row.numbers(more) for row in rows]}

    # -- within a step --------------------------------------------------------------------------

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the context as the phase ``name``, also after an exception.

        Raises:
            InputError: the name is reserved.
        """
        if not isinstance(name, str) or not name or name in _RESERVED:
            raise InputError(
                f"the phase {name!r}",
                f"a text that is none of {', '.join(sorted(_RESERVED))}",
                "a name that a step's record uses already",
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
        """Add the time so far to the user's phase that is open, if one is."""
        if self._named is None:
            return
        now = self._now()
        self._add(self._named, now - self._since)
        self._since = now

    def loads(self) -> float | None:
        """Return the time at which a loader is asked, or ``None`` if the call does not belong to the step."""
        if self._inside or get_ident() != self._thread:
            return None
        now = self._now()
        self._end_backward(now)
        self._inside, self._depth = True, 0  # a forward pass that did not end has raised
        return now

    def loaded(self, start: float, workers: int, arrived: bool = True) -> None:
        """End the wait for a loader: for a batch, or for the start of workers or the end of an epoch."""
        self._inside, now = False, self._now()
        self._add(DATA, now - start)
        self._arrived = now if arrived else None
        if arrived:
            self._workers = workers

    def forward_begins(self) -> None:
        """Begin a forward pass."""
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
        if self._events is not None:
            self._mark = self._events.record()

    def forward_ends(self, grad: bool) -> None:
        """End a forward pass; with ``grad`` a backward pass may follow."""
        if self._inside or get_ident() != self._thread:
            return
        if not self._depth or preserve.inside():
            if self._arrived is not None:  # a scoring pass of sift, which selected the samples of the batch
                self._arrived = self._now()
            return
        if self._depth > 1:
            self._depth -= 1
            return
        self._depth, now = 0, self._now()
        self._add(FORWARD, now - self._total - self._began)
        if self._events is not None:
            self._span("forward")
        self._after = now if grad else None

    def optimizer_begins(self) -> None:
        """Begin an update."""
        if self._inside or get_ident() != self._thread:
            return
        now = self._now()
        self._end_backward(now)
        self._arrived, self._depth = None, 0
        self._updating = now - self._total
        if self._events is not None:
            self._mark = self._events.record()

    def optimizer_ends(self) -> None:
        """End an update."""
        if self._inside or get_ident() != self._thread:
            return
        now = self._now()
        if self._after is not None:  # of a closure
            self._end_backward(now)
        self._add(OPTIMIZER, now - self._total - self._updating)
        if self._events is not None:
            self._span("optimizer")

    def _end_backward(self, now: float) -> None:
        if self._after is not None:
            self._add(BACKWARD, now - self._after)
            self._after = None
            if self._events is not None:
                self._span("backward")

    # -- on a device ----------------------------------------------------------------------------

    def _span(self, kind: str) -> None:
        """Record the time since the last mark as that of ``kind``."""
        if self._events is not None:
            now = self._events.record()
            if self._mark is not None and now is not None:
                self._spans.append((f"gpu_{kind}", self._mark, now))
            self._mark = now
