"""``torch.profiler`` over chosen steps: a trace for a browser, and the operators that took the most."""

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

COLUMNS = ("cpu", "cuda", "calls", "memory", "cuda_memory")
"""Of an operator, by its name: seconds by itself on the CPU and on the device, calls, and bytes by itself."""


class Windows:
    """Steps of training that follow each other in a schedule are a window.

    Args:
        run: where traces go: ``debug/trace.rank0.step100.json.gz``.
        when: asked with the number of a training step, over all modes; ``None``: never.
        top: operators in a record, by time on the CPU and as many by time on the device.
        put: takes the record of a window, for ``debug/operators``.
    """

    def __init__(
        self, run: Run, when: Schedule | None, top: int, put: Callable[[dict[str, Any]], None]
    ) -> None:
        self._run, self._when, self._top, self._put = run, when, top, put
        self._open: Any = None
        self._said, self._step, self._ended = False, -1, 0

    def begin(self, step: int, mode: str) -> None:
        """A step begins: a window opens, goes on or ends."""
        wanted = self._when is not None and mode == "train" and self._when(step)
        if self._open is not None and (not wanted or step not in (self._step, self._step + 1)):
            self.close()
        if wanted and self._open is None:
            self._start(step)
        self._step = step

    def end(self) -> None:
        """A step ended."""
        self._ended += 1

    def _start(self, step: int) -> None:
        if torch._C._autograd._profiler_enabled():
            if not self._said:
                self._said = True
                logging.getLogger("loopwise.debug").warning(
                    "step %d is not profiled: another torch.profiler is at work", step
                )
            return
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._open = torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True)
        self._open.start()
        self._first, self._ended, self._began = step, 0, time.perf_counter()

    def close(self) -> None:
        """End the window that is open, if any, and write what it saw; nothing where no step ended in it."""
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
        self._put(
            {
                "step": self._first,
                "steps": self._ended,
                "seconds": round(seconds, 6),
                "trace": trace,
                "columns": COLUMNS,
                "rows": operators(profile.key_averages(), self._top),
            }
        )


def operators(events: Any, top: int) -> list[list[Any]]:
    """Name and ``COLUMNS`` of those that took most time by themselves, on the CPU and on the device."""
    rows = [
        [
            str(event.key),
            round(event.self_cpu_time_total / 1e6, 6),
            round(event.self_device_time_total / 1e6, 6),
            int(event.count),
            int(event.self_cpu_memory_usage),
            int(event.self_device_memory_usage),
        ]
        for event in events
    ]
    kept = {id(row) for row in sorted(rows, key=lambda row: -row[1])[:top]}
    kept |= {id(row) for row in sorted(rows, key=lambda row: -row[2])[:top] if row[2] > 0}
    return sorted((row for row in rows if id(row) in kept), key=lambda row: -(row[1] + row[2]))
