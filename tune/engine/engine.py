"""Interface of an engine, on which trials run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from ..job.job import Job
from ..log.curves import Definition
from ..process.attempt import Attempt, Invocation
from .machine import Machine


class Engine(Protocol):
    """Place where attempts run, and what each of them has for itself."""

    def attempt(self, folder: Path, definitions: list[Definition]) -> Attempt:
        """Return the attempt in a folder, which may run, have ended, or not have begun."""

    def look(self) -> None:
        """Raise ``StateError`` if the place is lost; this is called before each look at the trials."""

    def errors(self) -> AbstractContextManager[None]:
        """Return a context that raises ``StateError`` in place of the errors of a place that is lost meanwhile."""

    def reserve(self) -> bool:
        """Keep what one attempt needs for the next ``start``; return false if all is in use."""

    def start(self, attempt: Attempt, invocation: Invocation) -> None:
        """Start an attempt with what was reserved."""

    def adopt(self, attempt: Attempt) -> None:
        """Count what an attempt uses that an earlier tuner started."""

    def release(self, attempt: Attempt) -> None:
        """Give back what an attempt used, of which no process is left."""

    def close(self) -> None:
        """End what is not an attempt that runs."""


def engine_of(job: Job, name: str, folder: Path, cwd: str) -> Engine:
    """Return the place where the trials of a job run.

    Args:
        job: the job.
        name: of the job on a cluster.
        folder: the folder of the attempts of all trials.
        cwd: the folder in which programs start.

    Raises:
        InputError: the program cannot be executed there, or a trial needs more than there is.
        MissingExtra: a package of the engine is not installed.
    """
    if job.engine == "ray":
        from .cluster import Cluster  # it imports Ray, which takes seconds

        return Cluster(job, name, folder, cwd)
    return Machine(job, cwd)
