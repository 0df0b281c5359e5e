"""Slots of one machine: a number of CPUs and certain GPUs for each running trial."""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from loopwise.errors import InputError
from loopwise.programs.locks import lock

from ..job.resources import Resources

QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(slots=True, eq=False)
class Slot:
    """CPUs and GPUs that one trial uses.

    Attributes:
        cpus: number of CPUs.
        gpus: numbers or names of GPUs, as in ``CUDA_VISIBLE_DEVICES``.
        locks: file descriptors that lock the GPUs against other jobs; none if an earlier tuner started the trial.
    """

    cpus: int
    gpus: list[str]
    locks: list[int] = field(default_factory=list)


def machine_cpus() -> int:
    """Return the number of CPUs that this process may use: by its affinity, and by the quota of its container."""
    count = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = QUOTA.read_text().split()
        count = max(1, min(count, math.ceil(int(quota) / int(period))))  # "max" is no number
    return count


def machine_gpus() -> list[str]:
    """Return the GPUs that this process may use: those of ``CUDA_VISIBLE_DEVICES`` if it is set, else all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(torch.cuda.device_count())]
    names = [name.strip() for name in visible.split(",")]
    hidden = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
    return names[:hidden]  # as the driver reads the variable


class Slots:
    """CPUs and GPUs of one machine, given out to trials.

    CPUs are counted.  Trials are not bound to certain ones: other processes and containers of the machine are not known,
    and a trial that shares its CPU with one of them would wait while others idle.  GPUs are locked by files, so that the
    trials of two jobs of one user do not share one.

    Args:
        resources: what a trial needs.
        cpus: number of CPUs.
        gpus: the GPUs.

    Raises:
        InputError: a trial needs more than there is, or others own the folder of locks.
    """

    def __init__(self, resources: Resources, cpus: int, gpus: Iterable[str]) -> None:
        self.resources, self._cpus, self._gpus = resources, cpus, list(gpus)
        self._taken: list[Slot] = []
        if resources.cpu > cpus or resources.gpu > len(self._gpus):
            names = f" ({', '.join(self._gpus)})" if self._gpus else ""
            raise InputError(
                f"resources with cpu: {resources.cpu} and gpu: {resources.gpu:g} for each trial",
                f"at most cpu: {cpus} and gpu: {len(self._gpus)}{names}, which this machine has",
                "a job for another machine, or CUDA_VISIBLE_DEVICES or an affinity that hides a part of this one",
                "lower resources, or use engine: ray for several machines",
            )
        self._folder = Path(tempfile.gettempdir()) / f"loopwise-gpus-{os.getuid()}"
        if self._gpus:
            self._make_folder()

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._folder.is_symlink() or self._folder.stat().st_uid != os.getuid():
            raise InputError(
                f"the folder {str(self._folder)!r}, which another user owns",
                "a folder of your own, for locks of GPUs",
                "another user made it",
                "remove it, or set TMPDIR to another folder",
            )

    def take(self) -> Slot | None:
        """Return what one trial needs; ``None``: too little is free."""
        if sum(slot.cpus for slot in self._taken) + self.resources.cpu > self._cpus:
            return None
        slot = Slot(self.resources.cpu, [])
        share = min(self.resources.gpu, 1)
        for gpu in self._gpus:
            if len(slot.gpus) < self.resources.gpu and self._uses(gpu) < (math.floor(1 / share + 1e-9)):
                held = self._locked(gpu)
                if held is not None:
                    slot.gpus.append(gpu)
                    slot.locks.append(held)
        if len(slot.gpus) < self.resources.gpu:
            self._unlock(slot)
            return None
        self._taken.append(slot)
        return slot

    def adopt(self, slot: Slot) -> None:
        """Count what a trial uses that an earlier tuner started."""
        self._taken.append(slot)

    def release(self, slot: Slot) -> None:
        """Give back what a trial used, of which no process is left."""
        self._taken.remove(slot)
        self._unlock(slot)

    def _uses(self, gpu: str) -> int:
        return sum(gpu in slot.gpus for slot in self._taken)

    def _locked(self, gpu: str) -> int | None:
        """Return a file descriptor that locks a GPU, or a share of it; ``None``: a trial of another job uses it."""
        path = self._folder / re.sub(r"[^\w.-]", "_", gpu)
        return lock(path, shared=self.resources.gpu < 1)

    def _unlock(self, slot: Slot) -> None:
        for held in slot.locks:
            os.close(held)
        slot.locks.clear()
