"""Looks at the machine and the process at fixed times, on a thread of its own, and writes down what it saw.

Formats, JSON lines in the run folder (see ``loopwise.run``), version 1.  A session is a process that wrote into
the run; its first line in a file has ``session``, when it began (seconds since the epoch).

``debug/system``
    First line: ``session``, ``version``, ``host``, ``interval`` (seconds), ``columns``, ``cores``, ``usable``,
    those of them that this process may run on, ``totals`` (bytes of memory by column of memory), ``devices``
    (name -> what it is) and ``used``, those that the training uses.  The others: ``row``, the numbers of
    ``columns``: ``time`` (seconds since the epoch), ``late`` (seconds behind the time when it was due),
    ``missed`` (samples so far that were a whole interval late, and left out), the columns of ``host.PROCESS``, and on one rank of each machine those of ``host.HOST``, ``cpu0``,
    ``cpu1``, ... and, for each device, ``gpu0``, ``gpu0_memory``, ``gpu0_power``, ... .
``debug/phases``
    First line: ``session``, ``version``.  The others: ``sample``, how many rows of ``debug/system`` came before;
    ``columns`` (see ``phases.FIXED``; then ``events.GPU`` and the user's phases), and ``rows``,
    with the mode before the numbers.
``debug/operators``
    One line a window of ``torch.profiler``: ``step`` (the first), ``steps``, ``seconds``, ``trace`` (a file in
    ``debug``), ``columns``, ``rows``, with the operator's name before the numbers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import psutil

from loopwise.errors import InputError
from loopwise.run import Lines, Run

from .gpu import COLUMNS, Devices
from .host import HOST, PROCESS, Source, rates, source

VERSION = 1
SHORTEST, LONGEST = 0.1, 60.0
"""Seconds between samples."""
REMOTE = 30.0
"""Seconds between flushes on remote storage, where each is a file."""
FLUSHES = 10
"""That may fail one after the other."""
PHASES = 1.0
"""Seconds between records of phases."""
Look = Callable[[str, dict[str, Any]], None]


class Sampler:
    """A daemon thread that takes a sample every ``interval`` seconds, on a grid that does not drift.

    Samples of the machine are taken by one rank of each machine, of the process by each.  Records are on
    local storage before the next sample is due, and at most 30 s later on remote storage; where that cannot be
    written they are kept, and written with the next ones.

    Args:
        run: where to.
        interval: seconds, from 0.1 to 60.
        used: UUIDs of the devices that the training uses.
        phases: gives the record of ``debug/phases`` that is due, if any.
        look: called with each record as it is written, after the part of its name behind ``debug/``.
        clock: monotonic seconds.
        read: where counters are read.

    Raises:
        InputError: an interval that cannot be used.
    """

    def __init__(
        self,
        run: Run,
        interval: float = 0.5,
        *,
        used: Iterable[str] = (),
        phases: Callable[[], dict[str, Any] | None] | None = None,
        look: Look | None = None,
        clock: Callable[[], float] = time.monotonic,
        read: Source | None = None,
    ) -> None:
        check(interval)
        self.interval, self._clock = float(interval), clock
        self._phases, self._look = phases, look
        self.error: Exception | None = None
        """Why it ended before it was closed."""
        self.samples = self.missed = self._failed = 0
        self._host = os.environ.get("LOCAL_RANK", "0") == "0"
        self._source = read or source(self._host)
        self._devices = Devices() if self._host else None
        self._more: deque[tuple[str, dict[str, Any]]] = deque()
        names = ("system", "phases") if phases is not None else ("system",)
        self._run = run
        self._lines = {name: Lines(run, "debug", name) for name in names}
        self._before = self._source.read()
        self._start = self._last = self._flushed = self._handed = clock()
        self._due = 1
        self._write("system", self._header(used))
        if phases is not None:
            self._write("phases", {"session": self._session, "version": VERSION})
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="loopwise sampler", daemon=True)

    def start(self) -> Sampler:
        self._thread.start()
        return self

    def put(self, name: str, record: dict[str, Any]) -> None:
        """Have a record written into ``debug/<name>`` with the next sample."""
        self._more.append((name, record))

    def close(self) -> None:
        """Take what is left, and end."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        with contextlib.ExitStack() as rest:  # all of it, whatever fails
            if self._devices is not None:
                rest.callback(self._devices.close)
            rest.callback(self._source.close)
            rest.callback(self._close_lines)
            if self.error is None and self._lines:
                self._hand_on()
                self._tell("end", {})

    def _close_lines(self) -> None:
        lines, self._lines = self._lines, {}
        with contextlib.ExitStack() as rest:
            for each in lines.values():
                rest.callback(each.close)

    # -- on the thread --------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while not self._stop.wait(max(0.0, self.due - self._clock())):
                self.sample()
        except Exception as error:
            self.error = error

    @property
    def due(self) -> float:
        """When the next sample is."""
        return self._start + self._due * self.interval

    def sample(self) -> None:
        """Take a sample now, and count those that it is too late for."""
        now = self._clock()
        late = now - self.due
        left_out = max(0, int(late // self.interval))
        self.missed += left_out
        counters = self._source.read()
        row = [round(time.time(), 3), round(late - left_out * self.interval, 4), float(self.missed)]
        row += [_short(value) for value in rates(self._before, counters, max(now - self._last, 1e-9))]
        if self._devices is not None:
            row += [_short(value) for value in self._devices.read()]
        self._before, self._last = counters, now
        self._due += 1 + left_out
        self._write("system", {"row": row})
        self.samples += 1
        if now - self._handed >= PHASES:
            self._handed = now
            self._hand_on()
        if not self._run.local and now - self._flushed >= REMOTE:
            self._flushed = now
            self._flush()

    def _flush(self) -> None:
        failure: Exception | None = None
        for lines in self._lines.values():
            try:
                lines.flush()
            except Exception as error:  # each kind of storage has its own
                failure = error
        if failure is None:
            self._failed = 0
            return
        self._failed += 1
        if self._failed == FLUSHES:
            raise failure
        if self._failed == 1:
            logging.getLogger("loopwise.debug").warning("the profile could not be written yet: %r", failure)

    def _hand_on(self) -> None:
        if self._phases is not None and (record := self._phases()) is not None:
            self._write("phases", {"sample": self.samples, **record})
        while self._more:
            self._write(*self._more.popleft())

    def _header(self, used: Iterable[str]) -> dict[str, Any]:
        self._session = round(time.time(), 3)
        cores = len(self._before.total)
        columns = ["time", "late", "missed", *PROCESS]
        totals = {"process_memory": psutil.virtual_memory().total}
        if cores:
            columns += [*HOST, *(f"cpu{index}" for index in range(cores))]
            totals |= {"memory": totals["process_memory"], "swap": psutil.swap_memory().total}
        devices = self._devices
        names = devices.names if devices is not None else []
        columns += [name + suffix for name in names for suffix in COLUMNS]
        if devices is not None:
            totals |= {f"{name}_memory": total for name, total in zip(names, devices.totals, strict=True)}
        return {
            "session": self._session,
            "version": VERSION,
            "host": socket.gethostname(),
            "interval": self.interval,
            "columns": columns,
            "cores": os.cpu_count() or 1,
            "usable": usable(),
            "totals": totals,
            "devices": dict(zip(names, devices.kinds, strict=True)) if devices is not None else {},
            "used": devices.used(used) if devices is not None else [],
        }

    def _write(self, name: str, record: dict[str, Any]) -> None:
        if name not in self._lines:
            self._lines[name] = Lines(self._run, "debug", name)
        self._lines[name].append(record)
        self._tell(name, record)

    def _tell(self, name: str, record: dict[str, Any]) -> None:
        if self._look is not None:
            self._look(name, record)


def usable() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(interval: float) -> None:
    """Raises: InputError: no number of seconds from 0.1 to 60."""
    if (
        isinstance(interval, bool)
        or not isinstance(interval, (int, float))
        or not SHORTEST <= interval <= LONGEST
    ):
        raise InputError(
            f"interval={interval!r}",
            f"seconds from {SHORTEST:g} to {LONGEST:g}",
            "milliseconds, or more samples than are of use",
            "interval=0.5",
        )


def _short(value: float) -> float:
    """Without decimals that say nothing."""
    return float(round(value)) if abs(value) >= 1e4 else round(value, 1)
