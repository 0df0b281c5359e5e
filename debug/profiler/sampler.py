"""Sampler of the machine and the process: a thread that takes samples at fixed times and writes them.

Formats, version 1: JSON lines in the run folder (``loopwise.run`` specifies files and numbers).  A session is one
process that wrote into the run.  Its first line in a file is a header with ``session``, the start of the session in
seconds since the epoch.

``debug/system.rank<r>.<n>.jsonl``
    Header: ``session``; ``version``; ``host``, name of the machine; ``interval``, seconds between samples;
    ``columns``, names of the numbers of a sample; ``cores`` of the machine; ``usable``, cores that this process may
    run on; ``totals``, total bytes for each column that holds memory; ``devices``, name -> model of each NVIDIA
    device; ``used``, names of the devices that the training uses.

    Sample: ``row``, the numbers of ``columns``.  These are ``time``, seconds since the epoch; ``late``, seconds
    behind the time when the sample was due; ``missed``, samples so far that were left out because they would have
    been late by a whole interval; ``process_cpu``, % of one core; ``process_memory``, bytes.  One rank of each
    machine adds ``cpu``, % of all cores; ``iowait``, %; ``memory`` and ``swap``, bytes in use; ``disk_read``,
    ``disk_write``, ``net_in`` and ``net_out``, bytes a second; ``cpu0``, ``cpu1``, ..., % of each core; and for each
    device ``gpu0``, utilization in %, ``gpu0_memory``, bytes in use, and ``gpu0_power``, watts.
``debug/phases.rank<r>.<n>.jsonl``
    Header: ``session``, ``version``.

    Record: ``sample``, number of samples in ``debug/system`` before it; ``columns``; and ``rows``, each of the mode
    and the numbers of ``columns``.  ``loopwise.debug.profiler.phases`` specifies the columns.
``debug/operators.rank<r>.<n>.jsonl``
    One record for each window of ``torch.profiler``: ``step``, its first step; ``steps``, their number;
    ``seconds``; ``trace``, name of a file in ``debug``; ``columns``; and ``rows``, each of the operator's name and
    the numbers of ``columns``.  ``loopwise.debug.profiler.windows`` specifies the columns.
"""

from __future__ import annotations

import contextlib
import errno
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
"""Smallest and largest valid interval, in seconds."""
REMOTE = 30.0
"""Seconds between flushes on remote storage, where each flush is a file."""
FLUSHES = 10
"""Number of failed flushes in a row that ends the sampler."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk that is full, which may pass."""
PHASES = 1.0
"""Seconds between records of phases."""


class Sampler:
    """Daemon thread that takes a sample every ``interval`` seconds, on a grid that does not drift.

    One rank of each machine samples the machine; each rank samples its process.  Records are on local storage before
    the next sample is due, and on remote storage at most 30 s later.  If remote storage fails, records are kept and
    written with the next ones.  If a local disk is full, records are left out as long as it is.

    Args:
        run: run that the records are written into.
        interval: seconds, from 0.1 to 60.
        used: UUIDs of the devices that the training uses.
        phases: returns the next record of ``debug/phases``, if any.
        look: function of (name, record), called for each record that is written; the name is ``system``,
            ``phases`` or ``operators``.
        clock: returns monotonic seconds.
        read: reader of the counters.

    Raises:
        InputError: ``interval`` is out of range.
    """

    def __init__(
        self,
        run: Run,
        interval: float = 0.5,
        *,
        used: Iterable[str] = (),
        phases: Callable[[], dict[str, Any] | None] = lambda: None,
        look: Callable[[str, dict[str, Any]], None] = lambda name, record: None,
        clock: Callable[[], float] = time.monotonic,
        read: Source | None = None,
    ) -> None:
        validate_interval(interval)
        self.interval, self._clock = float(interval), clock
        self._phases, self._look = phases, look
        self.error: Exception | None = None
        """Error that ended the thread before it was closed."""
        self.samples = self.missed = self._failed = 0
        self._told = False
        self._host = os.environ.get("LOCAL_RANK", "0") == "0"
        self._more: deque[tuple[str, dict[str, Any]]] = deque()
        self._run = run
        self._lines: dict[str, Lines] = {}
        self._source = read or source(self._host)
        with contextlib.ExitStack() as opened:  # closed if the rest fails
            opened.callback(self._source.close)
            self._devices = Devices(self._host)
            opened.callback(self._devices.close)
            opened.callback(self._close_lines)
            for name in ("system", "phases"):
                self._lines[name] = Lines(run, "debug", name)
            self._before = self._source.read()
            self._begin_files(used)
            opened.pop_all()
        self._start = self._last = self._flushed = self._handed = clock()
        self._due = 1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="loopwise sampler", daemon=True)

    def _begin_files(self, used: Iterable[str]) -> None:
        headers = {"system": self._header(used), "phases": {"session": self._session, "version": VERSION}}
        for name, header in headers.items():
            self._lines[name].header = header
            self._write(name, header)

    def start(self) -> Sampler:
        """Start the thread."""
        self._thread.start()
        return self

    def put(self, name: str, record: dict[str, Any]) -> None:
        """Queue a record that is written into ``debug/<name>`` with the next sample."""
        self._more.append((name, record))

    def close(self) -> None:
        """Write the last records and end the thread."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(10.0)
        with contextlib.ExitStack() as closing:  # every call is made, even if another one fails
            closing.callback(self._devices.close)
            closing.callback(self._source.close)
            closing.callback(self._close_lines)
            if self.error is None and self._lines:
                self._hand_on()
                self._look("end", {})

    def _close_lines(self) -> None:
        files, self._lines = self._lines, {}
        with contextlib.ExitStack() as closing:
            for lines in files.values():
                closing.callback(lines.close)

    # -- on the thread --------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while not self._stop.wait(max(0.0, self.due - self._clock())):
                self.sample()
        except Exception as error:
            self.error = error

    @property
    def due(self) -> float:
        """Time of the next sample."""
        return self._start + self._due * self.interval

    def sample(self) -> None:
        """Take a sample now, and count the samples that were missed."""
        now = self._clock()
        late = now - self.due
        left_out = max(0, int(late // self.interval))
        self.missed += left_out
        counters = self._source.read()
        row = [round(time.time(), 3), round(late - left_out * self.interval, 4), float(self.missed)]
        values = rates(self._before, counters, max(now - self._last, 1e-9)) + self._devices.read()
        row += [_short(value) for value in values]
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
        failures = []
        for lines in self._lines.values():
            try:
                lines.flush()
            except Exception as error:  # each kind of storage has its own errors
                failures.append(error)
        self._failed = self._failed + 1 if failures else 0
        if self._failed == FLUSHES:
            raise failures[-1]
        if self._failed == 1:
            logging.getLogger("loopwise.debug").warning(
                "the profile could not be written yet: %r", failures[-1]
            )

    def _hand_on(self) -> None:
        if (record := self._phases()) is not None:
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
        columns += [name + suffix for name in self._devices.kinds for suffix in COLUMNS]
        return {
            "session": self._session,
            "version": VERSION,
            "host": socket.gethostname(),
            "interval": self.interval,
            "columns": columns,
            "cores": os.cpu_count() or 1,
            "usable": usable(),
            "totals": totals | self._devices.totals,
            "devices": self._devices.kinds,
            "used": self._devices.used(used),
        }

    def _write(self, name: str, record: dict[str, Any]) -> None:
        try:
            if name not in self._lines:
                self._lines[name] = Lines(self._run, "debug", name)
            self._lines[name].append(record)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._left_out(name, error)
        self._look(name, record)

    def _left_out(self, name: str, error: OSError) -> None:
        """Go on without a record for which there is no space; a sample counts as missed."""
        self.missed += name == "system"
        if not self._told:
            self._told = True
            logging.getLogger("loopwise.debug").warning(
                "no space for the profile, whose records are left out until there is some: %r", error
            )


def usable() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def validate_interval(interval: float) -> None:
    """Raise an ``InputError`` if ``interval`` is no number of seconds from 0.1 to 60."""
    number = isinstance(interval, (int, float)) and not isinstance(interval, bool)
    if not number or not SHORTEST <= interval <= LONGEST:
        raise InputError(
            f"interval={interval!r}",
            f"seconds from {SHORTEST:g} to {LONGEST:g}",
            "milliseconds, or more samples than are useful",
            "interval=0.5",
        )


def _short(value: float) -> float:
    """Round to one decimal, or to a whole number from 10,000 on."""
    return float(round(value)) if abs(value) >= 1e4 else round(value, 1)
