"""What the time of each step goes into, on the training thread.

A step is from where the one before ended to its own end.  In it are, in seconds:

``data``: waiting for a ``DataLoader``;
``to_device``: from a batch's arrival to the model's forward pass, which is where it is moved;
``forward``: forward passes of the models;
``backward``: from the end of a forward pass with gradients to the optimizer's step, the next batch or
the next forward pass, whichever comes first: the loss, the backward pass, clipping;
``optimizer``: the optimizers' steps;
``loopwise``: what the ``Watch`` itself took;
``other``: the rest, less the user's own phases.

What the ``Watch`` takes is in no other phase.  Where a forward pass cannot be seen (a model inside of a
compiled function), its time and that of backward are ``other``.
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

from ..taps import absent
from .events import GPU, Events, Spans

KINDS = ("data", "to_device", "forward", "backward", "optimizer")
FIXED = ("step", "count", "time", "seconds", "longest", "workers", *KINDS, "loopwise", "other")
"""Of a row: its last step, how many it has, when it ended (seconds since the epoch), seconds of all its steps
and of the longest one, worker processes of the loader, and seconds of each phase."""
_ZERO = dict.fromkeys(KINDS, 0.0)
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
    loopwise: float = 0.0
    parts: list[dict[str, float]] = field(default_factory=list)
    """Seconds by name of each of its steps; behind ``KINDS`` the user's own."""
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
        self._rows: deque[Row] = deque()
        self._workers = 0
        self._named: str | None = None
        self._since = 0.0
        self._forget()

    def _forget(self) -> None:
        self._seconds: dict[str, float] = _ZERO.copy()
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

    def _add(self, kind: str, seconds: float) -> None:
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
        if seconds > row.longest:
            row.longest = seconds
        if self._spans:
            row.spans += self._spans
        row.parts.append(self._seconds)
        if row.seconds >= ROW:
            self.close_row()

    def close_row(self) -> None:
        """What there is of a row becomes one."""
        if self._row is not None:
            self._rows.append(self._row)
            self._row = None

    def drain(self, all_of_them: bool = False) -> dict[str, Any] | None:
        """Rows that are complete, as a record: ``columns``, and ``rows`` with the mode before them.

        Args:
            all_of_them: also those whose times a device has not told yet.
        """
        found: list[Row] = []
        while self._rows and (self._events is None or self._events.read(self._rows[0]) or all_of_them):
            found.append(self._rows.popleft())
        if not found:
            return None
        totals = [_sums(row.parts) for row in found]
        gpu = GPU if self._events is not None else ()
        more = [*gpu, *sorted({name for each in totals for name in each} - {*KINDS, *GPU})]
        rows = [self._numbers(row, each, more) for row, each in zip(found, totals, strict=True)]
        return {"columns": [*FIXED, *more], "rows": rows}

    def _numbers(self, row: Row, total: dict[str, float], more: list[str]) -> list[Any]:
        own = [value for name, value in total.items() if name not in GPU]
        other = max(0.0, row.seconds - row.loopwise - sum(own))
        seconds = [total[kind] for kind in KINDS] + [row.loopwise, other]
        seconds += [total.get(name, 0.0) for name in more]
        first = [row.mode, row.step, row.count, round(row.time, 3), round(row.seconds, 6)]
        return [*first, round(row.longest, 6), self._workers, *(round(value, 6) for value in seconds)]

    # -- what happens in a step -----------------------------------------------------------------

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time inside is that of the phase ``name``, whatever happens in it."""
        if not isinstance(name, str) or not name or name in {*FIXED, *GPU, "mode"} - {*KINDS}:
            raise InputError(
                f"the phase {name!r}",
                f"a word that is none of {', '.join(sorted({*FIXED, *GPU, 'mode'} - {*KINDS}))}",
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
        if self._named is not None:
            now = self._now()
            self._seconds.setdefault(self._named, 0.0)
            self._add(self._named, now - self._since)
            self._since = now

    def loads(self) -> float | None:
        """A loader is asked for a batch: when, or ``None`` where that is none of the step's."""
        if self._inside or get_ident() != self._thread:
            return None
        now = self._now()
        self._end_backward(now)
        self._inside = True
        return now

    def loaded(self, start: float, workers: int) -> None:
        """The batch is there."""
        self._inside, self._workers = False, workers
        self._arrived = now = self._now()
        self._add("data", now - start)

    def forward_begins(self) -> None:
        if self._inside or get_ident() != self._thread or absent():
            return
        self._depth += 1
        if self._depth > 1:  # a model in a model
            return
        self._began = now = self._now()
        if self._after is not None:
            self._end_backward(now)
        elif self._arrived is not None:
            self._add("to_device", now - self._arrived)
        self._arrived = None
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
        self._add("forward", now - self._began)
        self._span("forward")
        self._after = now if grad else None

    def optimizer_begins(self) -> None:
        if self._inside or get_ident() != self._thread:
            return
        now = self._now()
        self._end_backward(now)
        self._arrived = None
        self._updating = now - self._total
        self._mark = self._recorded()

    def optimizer_ends(self) -> None:
        if self._inside or get_ident() != self._thread:
            return
        now = self._now()
        self._end_backward(now)  # of a closure
        self._add("optimizer", now - self._total - self._updating)
        self._span("optimizer")

    def _end_backward(self, now: float) -> None:
        if self._after is not None:
            self._add("backward", now - self._after)
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


def _sums(parts: list[dict[str, float]]) -> dict[str, float]:
    total = _ZERO.copy()
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
