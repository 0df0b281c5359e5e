"""The folder of a run."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import fsspec
import torch

from loopwise import __version__
from loopwise.errors import InputError, StateError
from loopwise.programs.processes import identity
from loopwise.ranks import is_main, world_size
from loopwise.storage.files import is_local, listed, read_file, write_file
from loopwise.storage.json_lines import DAMAGED, count, decode, moment

from .record_files import Lines, match

SCHEMA = 1


def _process(pid: int) -> dict[str, Any] | None:
    """Return what identifies a process among those of all machines; ``None`` if it does not run."""
    found = identity(pid)
    return None if found is None else {**found, "space": os.readlink("/proc/self/ns/pid")}


class Run:
    """Folder of one training run.

    A ``with`` statement writes the end of the run and its state, ``finished`` or ``failed``, into ``run.json``.

    Args:
        path: folder or fsspec URL; made if missing.
        resume: continue in a folder that already holds a run; otherwise such a folder is an error.

    Attributes:
        fs: file system of the folder.
        path: path of the folder on that file system.
        local: whether the folder is on a local disk.

    Raises:
        StateError: the folder already holds a run.
    """

    def __init__(self, path: str | os.PathLike[str], resume: bool = False) -> None:
        self._locate(path)
        self._start: float | None = None
        self._is_new = False
        if not is_main():
            return
        try:
            self._begin(resume)
        except (OSError, NotImplementedError) as error:
            raise StateError(
                f"the folder {self.path!r} cannot hold a run: {error!r}",
                "a folder that this process may make and write to",
                "a read-only or full disk, missing rights, or a file in the place of the folder",
                "name another folder, or change its rights",
            ) from error

    def _begin(self, resume: bool) -> None:
        self._is_new = not self.exists()
        if not self._is_new and not resume:
            raise StateError(
                f"the folder {self.path!r} already holds a run",
                "a new or empty folder, or resume=True",
                "an earlier run wrote there",
                "name another folder, delete this one, or pass resume=True to go on in it",
            )
        self._made_folder = not self.fs.exists(self.path)
        self.fs.makedirs(self.path, exist_ok=True)
        self._start = time.time() if self._is_new else self.info()["start"]
        try:
            self._write("running", None)
        except BaseException:
            self.discard()
            raise

    def restore(self) -> None:
        """Write ``run.json`` again if the folder was deleted while the run goes on."""
        if self._start is not None and not self.exists():
            self.fs.makedirs(self.path, exist_ok=True)
            self._write("running", None)

    def discard(self) -> None:
        """Delete the files of a run that could not begin; those of a run that was there before are kept."""
        for lines in list(self._lines.values()):
            lines.close()
        self._lines.clear()
        if not is_main() or not self._is_new or not self.local:
            return
        ours = re.compile(r"[\w.-]+\.rank\d+\.\d+\.(jsonl|seg)")
        with contextlib.suppress(OSError):
            for folder in [entry.path for entry in os.scandir(self.path) if entry.is_dir()]:
                for file in filter(ours.fullmatch, os.listdir(folder)):
                    os.unlink(f"{folder}/{file}")
                with contextlib.suppress(OSError):  # files of the user's are in it
                    os.rmdir(folder)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.path}/run.json")
            if self._made_folder:
                os.rmdir(self.path)

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> Run:
        """Return the run in a folder or at a URL, opened for reading only.

        Raises:
            InputError: the folder holds no run, or a run of a newer schema.
        """
        run = cls.__new__(cls)
        run._locate(path)
        if (schema := run.info()["schema"]) > SCHEMA:
            raise InputError(
                f"{run.path!r} of schema {schema}",
                f"at most {SCHEMA}",
                "a newer version of Loopwise wrote the run",
                "pip install -U loopwise",
            )
        return run

    def _locate(self, path: str | os.PathLike[str]) -> None:
        self.fs, self.path = resolve(path)
        self.local = is_local(self.fs)
        self._lines: dict[tuple[str, str], Lines] = {}

    def __repr__(self) -> str:
        return f"Run({self.url!r})"

    @property
    def url(self) -> str:
        """Path of a local folder, or URL of a remote one; ``Run`` accepts both."""
        return self.path if self.local else str(self.fs.unstrip_protocol(self.path))

    @property
    def resumed(self) -> bool:
        """True if the folder held a run when this object was made; always true on ranks other than the first."""
        return not self._is_new

    def exists(self) -> bool:
        """Return whether the folder holds a run."""
        return bool(self.fs.exists(f"{self.path}/run.json"))

    def info(self) -> dict[str, Any]:
        """Return the contents of ``run.json``; the module's docstring lists the keys and their units.

        Raises:
            InputError: the file is missing or damaged.
        """
        try:
            return _valid(json.loads(read_file(self.fs, f"{self.path}/run.json")))
        except (OSError, *DAMAGED) as error:
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            raise InputError(
                f"no run.json in {self.path!r}" if missing else f"the run.json in {self.path!r}: {error!r}",
                "a folder that a run was written to",
                "a wrong path, or a run that was never started",
                "check the path",
            ) from None

    def state(self) -> str:
        """Return ``running``, ``finished``, ``failed``, or ``ended``: the process is gone and has not said how it ended.

        Processes of other machines and containers are not seen; their runs go on until they say that they end.

        Raises:
            InputError: ``run.json`` is missing or damaged.
        """
        info, own = self.info(), _process(os.getpid())
        process = info.get("process")
        if info["state"] != "running" or own is None or not isinstance(process, dict):
            return str(info["state"])
        is_here = (
            all(process.get(key) == own[key] for key in ("boot", "space")) and type(process.get("pid")) is int
        )
        return "ended" if is_here and _process(process["pid"]) != process else "running"

    def append(self, part: str, name: str, *records: dict[str, Any]) -> None:
        """Append records to this rank's file ``<part>/<name>``; a full disk raises an ``OSError``."""
        if (part, name) not in self._lines:
            self._lines[part, name] = Lines(self, part, name)
        self._lines[part, name].append(*records)

    def flush(self) -> None:
        """Commit the queued records of all files to remote storage; raise an ``OSError`` if it is down."""
        for lines in list(self._lines.values()):  # the profiler's thread may begin a file meanwhile
            lines.flush()

    def close(self, state: str = "finished") -> None:
        """Close the files; write the time and ``state``, ``finished`` or ``failed``, into ``run.json``."""
        for lines in list(self._lines.values()):
            lines.close()
        self._lines.clear()
        if is_main():
            self.restore()
            self._write(state, time.time())

    def _write(self, state: str, end: float | None) -> None:
        versions = {"loopwise": __version__, "torch": torch.__version__, "python": platform.python_version()}
        info = {"schema": SCHEMA, "state": state, "start": self._start, "end": end}
        info |= {"host": socket.gethostname(), "world": world_size(), "versions": versions}
        info |= {"process": process} if (process := _process(os.getpid())) else {}
        write_file(self.fs, f"{self.path}/run.json", json.dumps(info, indent=1).encode())

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("finished" if kind is None else "failed")


def _valid(info: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a ``run.json``, if this version knows its schema with values for missing keys.

    Raises:
        KeyError, TypeError, ValueError: a value is of another form.
    """
    if count(info["schema"], 1) > SCHEMA:
        return info
    info = {"state": "unknown", "start": None, "end": None, "host": "", "world": 1, "versions": {}} | info
    if not all(type(info[key]) is str for key in ("state", "host")):
        raise TypeError("state and host are no texts")
    for key in ("start", "end"):
        info[key] = None if info[key] is None else moment(info[key])
    count(info["world"], 1, 2**31)
    return info | {"versions": {str(key): str(value) for key, value in dict(info["versions"]).items()}}


def location(run: str | os.PathLike[str] | Run) -> str:
    """Return the path or URL of the run that a public ``run`` argument names.

    Raises:
        InputError: ``run`` is of another type.
    """
    if isinstance(run, Run):
        return run.url
    if not isinstance(run, (str, os.PathLike)):
        raise InputError(
            f"run= of type {type(run).__name__}",
            "a folder, an fsspec URL such as s3://bucket/run, or a Run",
            "arguments that changed places",
            "pass run='runs/example'",
        )
    return os.fspath(run)


def resolve(run: str | os.PathLike[str] | Run) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, path = fsspec.core.url_to_fs(location(run))
    return fs, os.path.normpath(path) if is_local(fs) else path


def read(
    path: str | os.PathLike[str],
    part: str,
    name: str,
    parse: Callable[[dict[str, Any]], Any] = dict,
) -> tuple[list[Any], int]:
    """Return the records of all ranks, by rank and number of the file, and the number of lost ones.

    A record is lost if it is cut off at the end of a file, damaged, or of another form.  A folder without records is no
    error.

    Args:
        path: folder or URL of a run.
        part: the part that wrote the records.
        name: name of its records, such as ``epochs`` of ``sift``.
        parse: function from a record to what is returned; see ``loopwise.storage.json_lines.decode``.
    """
    fs, folder = fsspec.core.url_to_fs(f"{os.fspath(path)}/{part}")
    matches = [(found, file) for file in listed(fs, folder) if (found := match(file, name))]
    records, lost = list[Any](), 0
    for _, _, file in sorted((int(found[1]), int(found[2]), file) for found, file in matches):
        try:
            data = read_file(fs, file)
        except FileNotFoundError:  # no file of ours
            continue
        of_file, lost_in_file = decode(data, parse)
        records += of_file
        lost += lost_in_file
    return records, lost
