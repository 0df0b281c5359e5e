"""Run trials on this machine."""

from __future__ import annotations

import json
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from loopwise.programs.processes import write_json

from ..job.command import validate_program
from ..job.job import Job
from ..log.curves import Definition
from ..process.attempt import Attempt, Invocation
from .slots import Slot, Slots, machine_cpus, machine_gpus


class Machine:
    """This machine; each trial has a supervisor, which outlives the tuner.

    ``slots.json`` in the folder of an attempt holds what it uses.

    Args:
        job: the job.
        cwd: the folder in which programs start.

    Raises:
        InputError: the program cannot be executed, or a trial needs more than the machine has.
    """

    def __init__(self, job: Job, cwd: str) -> None:
        validate_program(job.command, cwd)
        resources = job.resources
        gpus = machine_gpus() if resources is not None and resources.gpu else []
        self._slots = None if resources is None else Slots(resources, machine_cpus(), gpus)
        self._reserved: Slot | None = None
        self._used: dict[Path, Slot] = {}

    def attempt(self, folder: Path, definitions: list[Definition]) -> Attempt:
        return Attempt(folder, definitions)

    def look(self) -> None:
        pass

    def errors(self) -> AbstractContextManager[None]:
        return nullcontext()

    def reserve(self) -> bool:
        if self._slots is not None and self._reserved is None:
            self._reserved = self._slots.take()
            return self._reserved is not None
        return True

    def start(self, attempt: Attempt, invocation: Invocation) -> None:
        environment, slot = dict(os.environ), self._reserved
        attempt.folder.mkdir(parents=True, exist_ok=True)
        if slot is not None:
            self._used[attempt.folder], self._reserved = slot, None
            write_json(f"{attempt.folder}/slots.json", {"cpus": slot.cpus, "gpus": slot.gpus})
            environment.setdefault("OMP_NUM_THREADS", str(slot.cpus))
            if slot.gpus:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        attempt.start(invocation, environment | invocation.variables, () if slot is None else slot.locks)

    def adopt(self, attempt: Attempt) -> None:
        path = attempt.folder / "slots.json"
        if self._slots is not None and path.exists():
            slot = Slot(**json.loads(path.read_text()))
            self._used[attempt.folder] = slot
            self._slots.adopt(slot)

    def release(self, attempt: Attempt) -> None:
        slot = self._used.pop(attempt.folder, None)
        if slot is not None and self._slots is not None:
            self._slots.release(slot)

    def close(self) -> None:
        if self._slots is not None and self._reserved is not None:
            self._slots.release(self._reserved)
            self._reserved = None
