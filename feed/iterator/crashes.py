"""Samples that end their worker: counted, named, raised or skipped."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from loopwise.errors import StateError
from loopwise.warnings import warn

from ..protocol import Lost, Task

LIMIT = 2
"""Workers that may end over the same batch; one may be bad luck, such as a kill from outside."""


class Crashes:
    """Workers that ended in the middle of a batch.

    Args:
        skip: whether samples that end their worker are left out, with a warning; otherwise they are errors.
        iterable: whether the dataset is iterable, so that no sample can be left out.
    """

    def __init__(self, skip: bool, iterable: bool) -> None:
        self._skip, self._iterable = skip and not iterable, iterable
        self._counts: Counter[tuple[int, int]] = Counter()
        self.skipped: list[Any] = []
        """Indices of the samples that were left out."""

    def judge(self, task: Task, lost: Lost) -> Task | StateError | None:
        """Return the task to execute again, an error to raise in place of the batch, or ``None`` to leave out the batch."""
        key = task.epoch, task.number
        self._counts[key] += lost.guilty
        if self._counts[key] < LIMIT:
            return task
        del self._counts[key]
        known = isinstance(task.indices, (list, tuple)) and lost.position is not None
        sample = task.indices[lost.position] if known else task.indices
        if not self._skip:
            return self._error(task, lost, sample, known)
        rest = [index for n, index in enumerate(task.indices) if n != lost.position] if known else []
        self.skipped += [sample] if known else list(sample) if isinstance(sample, list) else [sample]
        name = f"sample {sample!r}" if known else f"batch {task.number} with the samples {sample!r}"
        warn(f"{name} was left out: twice, the worker process that loaded it {lost.reason}", stacklevel=4)
        return replace(task, indices=rest) if rest else None

    def _error(self, task: Task, lost: Lost, sample: Any, known: bool) -> StateError:
        if self._iterable:
            name = f"batch {task.number} of lane {task.lane}"
        elif known:
            name = f"sample {sample!r} of batch {task.number}"
        else:
            name = f"batch {task.number} with the samples {sample!r}"
        fix = "load that sample in this process (num_workers=0) to see the fault"
        return StateError(
            f"twice, the worker process that loaded {name} {lost.reason}",
            "samples that can be loaded, or that raise an exception",
            "a crash in native code, too little memory, or a call that ends the process",
            fix if self._iterable else f'{fix}, or leave such samples out with on_crash="skip"',
        )
