"""Recording of chosen steps by ``torch.profiler``: a trace for a browser, and the operators that took most time.

A row of ``debug/operators`` has the operator's name and then the numbers of its columns: ``cpu`` and ``cuda``, seconds
by itself on the CPU and on the device; ``calls``; ``memory`` and ``cuda_memory``, bytes allocated by itself.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

from loopwise.ranks import rank
from loopwise.run import Run
from loopwise.schedule import Schedule

from ..torch_internals import is_torch_profiler_on

COLUMNS = ("cpu", "cuda", "calls", "memory", "cuda_memory")
"""Columns of an operator; see above."""


class Windows:
    """Recorder of windows: consecutive training steps of a schedule.

    Args:
        run: run that traces are written into, as ``debug/trace.rank0.step100.json.gz``.
        when: schedule that is called with the number of a training step, over all modes; ``None``: never.
        top: operators in a record, by time on the CPU, and as many by time on the device.
        put: called with ``operators`` and the record of a window.
    """

    def __init__(
        self, run: Run, when: Schedule | None, top: int, put: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self._run, self._when, self._top, self._put = run, when, top, put
        self._open: Any = None
        self._warned, self._step, self._ended = False, -1, 0

    def begin(self, step: int, mode: str) -> None:
        """Begin a step: open, continue or close a window."""
        wanted = self._when is not None and mode == "train" and self._when(step)
        if self._open is not None and (not wanted or step not in (self._step, self._step + 1)):
            self.close()
        if wanted and self._open is None:
            self._start(step)
        self._step = step

    def end(self) -> None:
        """End a step."""
        self._ended += 1

    def _start(self, step: int) -> None:
        if is_torch_profiler_on():
            if not self._warned:
                text = "step %d is not profiled: another torch.profiler is active"
                logging.getLogger("loopwise.debug").warning(text, step)
            self._warned = True
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._open = torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True)
        self._open.start()
        self._first, self._ended, self._began = step, 0, time.perf_counter()

    def close(self) -> None:
        """Close the window that is open, if any, and write its record if a step ended in it."""
        if self._open is None:
            return
        profile, self._open = self._open, None
        seconds = time.perf_counter() - self._began
        profile.stop()
        if not self._ended:
            return
        trace = f"trace.rank{rank()}.step{self._first}.json.gz"
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, "trace.json.gz")
            profile.export_chrome_trace(local)
            self._run.fs.makedirs(f"{self._run.path}/debug", exist_ok=True)
            self._run.fs.put_file(local, f"{self._run.path}/debug/{trace}")
        record = {"step": self._first, "steps": self._ended, "seconds": round(seconds, 6), "trace": trace}
        rows = operators(profile.key_averages(), self._top)
        self._put("operators", {**record, "columns": COLUMNS, "rows": rows})


def operators(events: Any, top: int) -> list[list[Any]]:
    """Return names and ``COLUMNS`` of the operators that took most time by themselves, on the CPU and on the device."""
    rows = []
    for event in events:
        times = event.self_cpu_time_total, event.self_device_time_total
        memory, cuda_memory = int(event.self_cpu_memory_usage), int(event.self_device_memory_usage)
        seconds = [round(microseconds / 1e6, 6) for microseconds in times]
        rows.append([str(event.key), *seconds, int(event.count), memory, cuda_memory])
    kept = {id(row) for row in sorted(rows, key=lambda row: -row[1])[:top]}
    kept |= {id(row) for row in sorted(rows, key=lambda row: -row[2])[:top] if row[2] > 0}
    return sorted((row for row in rows if id(row) in kept), key=lambda row: -(row[1] + row[2]))
