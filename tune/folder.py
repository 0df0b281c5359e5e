"""The folder of a job, in which one tuner at a time works."""

from __future__ import annotations

import os
from pathlib import Path

from loopwise.errors import InputError, StateError
from loopwise.programs.locks import lock
from loopwise.programs.processes import write_json

from .job.database_url import without_password
from .job.files import stored
from .job.job import Job

FREE = frozenset(["limits", "early_stopping", "resources", "cluster"])
"""Fields that a resumed job may change."""


class JobFolder:
    """Folder ``tune`` of a run, locked for one tuner.

    Args:
        path: the run folder; it is made if it does not exist.
        resume: read the job that it holds.

    Attributes:
        path: the folder ``tune``.
        trials: the folder of the attempts of all trials.
        is_new: it holds no job that goes on.
        cwd: the folder in which programs start: the present one, or that of the job that goes on.
        name: of the job's study and of its trials in shared storage and on a cluster.

    Raises:
        StateError: another tuner works in it.
        InputError: the job that it holds is damaged.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.run, self.path = path, path / "tune"
        self.trials = (self.path / "trials").absolute()
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        file = self.path / "job.json"
        try:
            self._stored = stored(file) if resume and file.exists() else None
        except BaseException:
            self.close()
            raise
        self.is_new = self._stored is None
        self.cwd: str = os.getcwd() if self._stored is None else self._stored["folder"]
        name = f"{path.absolute().name}-{os.urandom(4).hex()}"
        self.name: str = name if self._stored is None else self._stored["name"]

    def _locked(self) -> int:
        held = lock(self.path / "tuner.lock")
        if held is None:
            raise StateError(
                f"another tuner works in {str(self.run)!r}",
                "one tuner for each folder",
                "the same job was started twice",
                "wait for it, end it, or give another folder",
            )
        return held

    def store(self, job: Job) -> None:
        """Write a job into the folder, which holds none or the same.

        Raises:
            InputError: the folder holds another job.
        """
        own = job.model_dump(mode="json")
        if job.storage is not None:
            own["storage"] = without_password(job.storage)
        before = own if self._stored is None else self._stored["job"]
        changed = sorted(name for name in own if name not in FREE and own[name] != before.get(name))
        if changed:
            raise InputError(
                f"a job that differs from the one in {str(self.run)!r} in {', '.join(changed)}",
                f"the same job; {', '.join(sorted(FREE))} may change",
                "the job file was edited",
                "undo the edit, or give another folder",
            )
        write_json(f"{self.path}/job.json", {"job": own, "folder": self.cwd, "name": self.name})

    def attempt(self, trial: int, attempt: int) -> Path:
        """Return the folder of an attempt at a trial."""
        return self.trials / f"{trial:05d}" / str(attempt)

    def attempts(self, trial: int) -> int:
        """Return the number of attempts at a trial that were begun."""
        folder = self.trials / f"{trial:05d}"
        return max((int(path.name) + 1 for path in folder.iterdir()), default=0) if folder.exists() else 0

    def close(self) -> None:
        """Let another tuner work in the folder."""
        os.close(self._lock)
