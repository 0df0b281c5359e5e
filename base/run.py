"""The run folder: where the parts of one training run leave what they know.

Format, schema version 1.  A run is a folder, local or at any fsspec URL (``s3://...``):

``run.json``
    One JSON object: ``schema``, ``state`` (``running``, ``finished``, ``failed``), ``start`` and
    ``end`` (seconds since the epoch; ``end`` is null while running), ``host``, ``world`` and
    ``versions``.  Rank 0 alone writes it, whole, by atomic replacement.
``<part>/<name>.rank<r>.<n>.jsonl``
    JSON lines: UTF-8, one object a line, without blanks.  Numbers that JSON lacks are the strings
    ``NaN``, ``Infinity`` and ``-Infinity``.  The newline is the commit: a record without it (a
    process killed while writing) does not exist; readers drop it and count it.  ``n`` counts the
    files of one rank from 0: a resumed run starts a new file, so no process ever touches a file
    that another one wrote.  On remote storage, where files cannot grow, each flush is a file.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import socket
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, ClassVar

import fsspec
import torch

from loopwise import __version__
from loopwise.errors import InputError, StateError
from loopwise.ranks import is_main, rank, world_size

SCHEMA = 1


def _plain(value: Any) -> Any:
    """``value`` with non-finite floats as strings and tensors and NumPy scalars as numbers."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def encode(record: dict[str, Any]) -> bytes:
    """One record as its line, newline included."""
    return json.dumps(_plain(record), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """The committed records of a file's bytes, and the number of torn ones (0 or 1) dropped."""
    *lines, tail = data.split(b"\n")
    return [json.loads(line) for line in lines], int(bool(tail))


def listed(fs: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Paths of the files in a folder as it is now; none where it is missing, as on object storage empty ones are."""
    fs.invalidate_cache(folder)
    try:
        return list(fs.ls(folder, detail=False))
    except FileNotFoundError:
        return []


class Lines:
    """Appends JSON lines.  Local: one write a record, nothing buffered.  Remote: a file a flush."""

    def __init__(self, run: Run, part: str, name: str) -> None:
        folder = f"{run.path}/{part}"
        run.fs.makedirs(folder, exist_ok=True)
        self._fs, self._stem = run.fs, f"{folder}/{name}.rank{rank()}"
        taken = [int(m[1]) for f in listed(run.fs, folder) if (m := _numbered(f, name, rank()))]
        self._number = max(taken, default=-1) + 1
        self._pending: list[bytes] = []
        self._file: int | None = None
        if run.local:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._file = os.open(f"{self._stem}.{self._number}.jsonl", flags, 0o644)

    def append(self, record: dict[str, Any]) -> None:
        """Commit ``record`` (local), or keep it for the next ``flush`` (remote)."""
        line = encode(record)
        if self._file is None:
            self._pending.append(line)
            return
        size = os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.ftruncate(self._file, size)  # the next record must not be joined to a torn one
            raise

    def flush(self) -> None:
        """Commit what is pending on remote storage; local records are committed already."""
        if self._pending:
            self._fs.pipe_file(f"{self._stem}.{self._number}.jsonl", b"".join(self._pending))
            self._pending, self._number = [], self._number + 1

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _numbered(file: str, name: str, of_rank: int | None = None) -> re.Match[str] | None:
    who = r"\d+" if of_rank is None else str(of_rank)
    return re.fullmatch(rf"{re.escape(name)}\.rank{who}\.(\d+)\.jsonl", file.rsplit("/", 1)[-1])


@dataclass
class Run:
    """One run's folder.  Use it as a context manager to have its end and state written.

    Args:
        path: folder or fsspec URL; made if missing.
        resume: go on in a folder that already holds a run; otherwise that is an error.
    """

    path: str
    resume: bool = False
    _lines: dict[tuple[str, str], Lines] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._find()
        if not is_main():
            return
        if self.fs.exists(f"{self.path}/run.json") and not self.resume:
            raise StateError(
                f"the folder {self.path!r} already holds a run",
                "a new or empty folder, or resume=True",
                "an earlier run wrote there",
                "name another folder, delete this one, or pass resume=True to go on in it",
            )
        self.fs.makedirs(self.path, exist_ok=True)
        self._start = self.info()["start"] if self.resume and self.exists() else time.time()
        self._write("running", None)

    @classmethod
    def existing(cls, path: str | os.PathLike[str]) -> Run:
        """A run that is there, to be read: nothing is written into it.

        Raises:
            InputError: there is none, or it is of a newer schema.
        """
        run = cls.__new__(cls)
        run.path, run.resume, run._lines = os.fspath(path), False, {}
        run._find()
        if (found := run.info()["schema"]) > SCHEMA:
            raise InputError(
                f"{run.path!r} of schema {found}", f"at most {SCHEMA}", "by a newer Loopwise", "update it"
            )
        return run

    def _find(self) -> None:
        self.fs, self.path = fsspec.core.url_to_fs(str(self.path))
        self.local = "file" in (self.fs.protocol, *self.fs.protocol)

    def exists(self) -> bool:
        return bool(self.fs.exists(f"{self.path}/run.json"))

    def info(self) -> dict[str, Any]:
        """The contents of ``run.json``."""
        try:
            info: dict[str, Any] = json.loads(self.fs.cat_file(f"{self.path}/run.json"))
            return info | {"schema": int(info["schema"])}
        except (OSError, KeyError, TypeError, ValueError) as error:
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            raise InputError(
                f"no run.json in {self.path!r}" if missing else f"the run.json in {self.path!r}: {error!r}",
                "a folder that a run was written to",
                "a wrong path, or a run that was never started",
                "check the path",
            ) from None

    def append(self, part: str, name: str, record: dict[str, Any]) -> None:
        """Append ``record`` to the JSON lines ``name`` of ``part``."""
        if (part, name) not in self._lines:
            self._lines[part, name] = Lines(self, part, name)
        self._lines[part, name].append(record)

    def flush(self) -> None:
        for lines in self._lines.values():
            lines.flush()

    def close(self, state: str = "finished") -> None:
        """Close the files and write the end and ``state`` into ``run.json``."""
        for lines in self._lines.values():
            lines.close()
        self._lines.clear()
        if is_main():
            self._write(state, time.time())

    def _write(self, state: str, end: float | None) -> None:
        versions = {"loopwise": __version__, "torch": torch.__version__, "python": platform.python_version()}
        info = {"schema": SCHEMA, "state": state, "start": self._start, "end": end}
        info |= {"host": socket.gethostname(), "world": world_size(), "versions": versions}
        data, target = json.dumps(info, indent=1).encode(), f"{self.path}/run.json"
        if not self.local:
            self.fs.pipe_file(target, data)
            return
        with open(f"{target}.new", "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{target}.new", target)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("finished" if kind is None else "failed")


class RunHandle:
    """One part's use of a run.

    Attributes:
        run: the run.
    """

    def __init__(self, run: Run, part: str, shared: _Shared | None) -> None:
        self.run, self._part, self._shared = run, part, shared

    def release(self, state: str = "finished") -> None:
        """End the part's use; the last part that opened the run by its path closes it.

        Args:
            state: how the part ended, ``finished`` or ``failed``; the run has failed if a part of it has.
        """
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.release(self._part, state)


class _Shared:
    """A run that was opened by its path, and the parts of this process that use it."""

    by_path: ClassVar[dict[str, _Shared]] = {}

    def __init__(self, run: Run) -> None:
        self.run, self.parts, self._state = run, set[str](), "finished"

    def release(self, part: str, state: str) -> None:
        self.parts.discard(part)
        self._state = state if state != "finished" else self._state
        if not self.parts:
            self.by_path.pop(self.run.path, None)
            self.run.close(self._state)


def as_run(run: str | os.PathLike[str] | Run | None, part: str, resume: bool = False) -> RunHandle | None:
    """Open the run that a public ``run=`` argument names.

    Parts of one process that are given the same path share one ``Run``, so that a loop can name its run folder
    in each of them.  A ``Run`` that the caller made is used as it is and stays open.

    Args:
        run: a folder or fsspec URL, a ``Run``, or ``None``.
        part: name of the part that uses it.
        resume: go on in a folder that already holds a run; only for a path.

    Returns:
        The part's handle, to be released at its end; ``None`` if ``run`` is ``None``.

    Raises:
        InputError: ``run`` is of another type, or ``resume`` was given for a ``Run``.
        StateError: the folder already holds a run.
    """
    if run is None:
        return None
    if isinstance(run, Run):
        if resume:
            raise InputError(
                "resume=True together with a Run",
                "resume= where run= is a path",
                "a Run is already open",
                "make it by Run(path, resume=True), and leave resume out here",
            )
        return RunHandle(run, part, None)
    if not isinstance(run, (str, os.PathLike)):
        raise InputError(
            f"run= of type {type(run).__name__}",
            "a folder, an fsspec URL such as s3://bucket/run, a Run, or None",
            "an argument in the place of another one",
            "pass run='runs/example'",
        )
    path = fsspec.core.url_to_fs(os.fspath(run))[1]
    shared = _Shared.by_path.get(path)
    if shared is None or part in shared.parts:
        shared = _Shared(Run(os.fspath(run), resume=resume))
        _Shared.by_path[shared.run.path] = shared
    shared.parts.add(part)
    return RunHandle(shared.run, part, shared)


def read(path: str, part: str, name: str) -> tuple[list[dict[str, Any]], int]:
    """All committed records of ``name`` in ``part``, by rank and age, and the number of torn ones."""
    fs, folder = fsspec.core.url_to_fs(f"{path}/{part}")
    found = [file for file in listed(fs, folder) if _numbered(file, name)]
    records: list[dict[str, Any]] = []
    torn = 0
    for file in sorted(
        found, key=lambda f: [int(n) for n in re.findall(r"\d+", f[len(folder) + len(name) :])]
    ):
        some, lost = decode(fs.cat_file(file))
        records, torn = records + some, torn + lost
    return records, torn
